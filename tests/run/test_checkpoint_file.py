"""Results of a run that was trained on after its test."""

import json
import shutil

import pytest
import torch

from mrg.cli import main
from mrg.pages.tested_run import TestedRun
from mrg.run.checkpoint_file import fingerprint, is_outdated
from mrg.run.folder import make_room
from tests.callbacks.runs import fit_arguments

NOTE = "of an earlier best checkpoint"


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """Folder of a run of three steps that was tested."""
    folder = tmp_path_factory.mktemp("runs")
    main(["fit", *fit_arguments(folder, "--monitor=val/loss")])
    main(["test", f"--config={folder / 'run' / 'config.yaml'}"])
    return folder


def test_a_run_that_goes_on_marks_its_old_results(tested, capsys):
    run = tested / "run"
    assert NOTE not in (run / "index.html").read_text()
    assert not TestedRun.read(run).is_outdated
    shutil.copytree(run, tested / "before")
    assert not TestedRun.read(tested / "before").is_outdated
    main(["fit", *fit_arguments(tested, "--monitor=val/loss", "--resume=auto", "--trainer.max_steps=6")])
    page = (run / "index.html").read_text()
    assert NOTE in page
    assert f"python -m mrg test --config {run}/config.yaml" in page
    capsys.readouterr()
    main(["compare", str(run), str(tested / "before"), "--trials=5", "--images=none"])
    line = capsys.readouterr().err.splitlines()[0]
    note = "run was trained on after its test: these are reports of an earlier best checkpoint."
    assert line.startswith(f"Warning: {note}")
    assert line.endswith(f"python -m mrg test --config {run / 'config.yaml'}")
    main(["test", f"--config={run / 'config.yaml'}"])
    assert NOTE not in (run / "index.html").read_text()
    capsys.readouterr()
    main(["compare", str(run), str(tested / "before"), "--trials=5", "--images=none"])
    assert "trained on after" not in capsys.readouterr().err


def test_a_fingerprint_is_of_the_weights_alone(tmp_path):
    weights = {"a": torch.arange(5.0), "b": torch.zeros(2)}
    torch.save({"weights": weights, "seconds": 1.5}, tmp_path / "a.ckpt")
    torch.save({"weights": weights, "seconds": 2.5}, tmp_path / "b.ckpt")
    torch.save({"weights": {**weights, "b": torch.ones(2)}, "seconds": 1.5}, tmp_path / "c.ckpt")
    prints = [fingerprint(tmp_path / f"{name}.ckpt") for name in "abc"]
    assert prints[0] == prints[1] != prints[2]
    assert all(prints)
    (tmp_path / "d.ckpt").write_text("no archive")
    assert fingerprint(tmp_path / "d.ckpt") == fingerprint(tmp_path / "none.ckpt") == ""


def test_a_checkpoint_of_one_file_per_rank(tmp_path):
    folder = tmp_path / "best.ckpt"
    folder.mkdir()
    torch.save({"step": torch.tensor(1)}, folder / "meta.pt")
    before = fingerprint(folder)
    torch.save({"step": torch.tensor(2)}, folder / "meta.pt")
    assert "" != before != fingerprint(folder)


def test_a_moved_run_is_found_and_an_older_one_passes(tmp_path):
    files = tmp_path / "run" / "checkpoints"
    files.mkdir(parents=True)
    torch.save({"a": torch.zeros(2)}, files / "best.ckpt")
    results = {"protocol": {"checkpoint": "gone/best.ckpt", "fingerprint": fingerprint(files / "best.ckpt")}}
    assert not is_outdated(tmp_path / "run", results)
    torch.save({"a": torch.ones(2)}, files / "best.ckpt")
    assert is_outdated(tmp_path / "run", results)
    assert not is_outdated(tmp_path / "run", {"protocol": {"checkpoint": "gone/best.ckpt"}})
    assert not is_outdated(tmp_path / "run", {})
    (files / "best.ckpt").unlink()
    assert not is_outdated(tmp_path / "run", results)


def test_a_run_that_begins_anew_keeps_nothing_of_the_former_one(tmp_path):
    names = ("predictions.jsonl", "predictions.jsonl.scores.json", "images.jsonl", "compare-other.html", "results.json")
    for name in (*names, "notes.txt"):
        (tmp_path / name).write_text(json.dumps(name))
    make_room(tmp_path, overwrite=False)
    assert len(list(tmp_path.iterdir())) == len(names) + 1
    make_room(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
