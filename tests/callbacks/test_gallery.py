"""The page that `test` and `predict` leave in a run's folder."""

import json
import re
from pathlib import Path

import pytest

from mrg.callbacks.gallery import GalleryWriter
from mrg.cli import main
from tests.trees import write_iu_tree

CONFIG = Path(__file__).parent.parent.parent / "configs" / "iu_tiny_sft.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy of one step, and the arguments that lead to it."""
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "data").mkdir()
    write_iu_tree(folder / "data", num_views=3)
    argv = [
        f"--config={CONFIG}",
        f"--runs={folder}",
        f"--data.init_args.root={folder / 'data'}",
        "--data.init_args.variant=any",
        "--data.init_args.batch_size=4",
        "--data.init_args.num_workers=0",
        "--trainer.enable_progress_bar=false",
        "--model.init_args.max_new_tokens=8",
        "--model.init_args.tiny={hidden_size: 32, num_layers: 1, vision_depth: 1, vocab_size: 400}",
    ]
    main(["fit", *argv, "--trainer.max_steps=1", "--trainer.val_check_interval=1"])
    return folder / "iu_tiny_sft", argv


def read(page):
    text = page.read_text(encoding="utf-8")
    return text, json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_test_writes_a_page_and_predict_leaves_it(trained, capsys):
    run, argv = trained
    main(["predict", *argv])
    assert f"Gallery: {run / 'gallery.html'}\n" in capsys.readouterr().out
    text, data = read(run / "gallery.html")
    assert data["hasReference"] is False
    main(["test", *argv])
    assert f"Gallery: {run / 'gallery.html'}\n" in capsys.readouterr().out
    text, data = read(run / "gallery.html")
    assert data["hasReference"] is True
    assert sorted(study["id"] for study in data["studies"]) == ["test0", "test1", "test2"]
    assert data["maxViews"] == 2
    assert [len(study["views"]) for study in data["studies"]] == [3, 3, 3]
    assert text.count('id="image-') == 9
    assert "constant normal" in text
    main(["predict", *argv])
    assert f"Gallery: {run / 'gallery-predict.html'}\n" in capsys.readouterr().out
    assert (run / "gallery.html").read_text(encoding="utf-8") == text


def test_options(trained):
    run, argv = trained
    main(["test", *argv, "--gallery.images=link", "--gallery.max_studies=2"])
    text, data = read(run / "gallery.html")
    assert "image-0" not in text
    links = [view["link"] for study in data["studies"] for view in study["views"]]
    assert len(links) == 6
    assert all((run / link).is_file() for link in links)
    (run / "gallery.html").unlink()
    main(["test", *argv, "--gallery.write=false"])
    assert not (run / "gallery.html").exists()


def test_bad_options_are_one_line(trained, capsys):
    _, argv = trained
    with pytest.raises(SystemExit) as stop:
        main(["test", *argv, "--gallery.images=all"])
    assert stop.value.code == 2
    assert "'embed', 'link' or 'none', but got 'all'." in capsys.readouterr().err.strip().splitlines()[-1]
    with pytest.raises(ValueError, match="at least 1, but got 0"):
        GalleryWriter(max_studies=0)
