"""`predict --images` as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrg.cli import main
from mrg.commands.predict_images import with_images
from tests.trees import write_iu_tree

CONFIGS = Path(__file__).parents[2] / "configs"


def test_options_become_settings():
    assert with_images(["--images", "a.png", "b c.png", "--as_one_study", "--name", "x", "--images", "d"]) == [
        "--name",
        "x",
        "--data=mrg.datamodules.own_images.ImagesDataModule",
        "--data.init_args.limit_test=0",
        '--data.init_args.images=["a.png", "b c.png", "d"]',
        "--data.init_args.on_error=skip",
        "--data.init_args.as_one_study=true",
    ]
    assert with_images(["--images", "a.png", "--output=o.jsonl", "--as_one_study", "false"])[-2:] == [
        "--data.init_args.as_one_study=false",
        "--data.init_args.output=o.jsonl",
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with two runs, a tiny policy and a LoRA upon it, whose training data are gone, and images."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "data").mkdir()
    write_iu_tree(folder / "data")
    common = [
        f"--runs={folder / 'runs'}",
        f"--data.init_args.root={folder / 'data'}",
        "--data.init_args.variant=any",
        "--data.init_args.batch_size=4",
        "--data.init_args.limit_test=3",
        "--data.init_args.num_workers=0",
        "--trainer.enable_progress_bar=false",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        "--model.init_args.max_new_tokens=8",
    ]
    tiny = "{hidden_size: 32, num_layers: 1, vision_depth: 1, vocab_size: 400}"
    main(["fit", f"--config={CONFIGS / 'iu_tiny_sft.yaml'}", f"--model.init_args.tiny={tiny}", *common])
    policy = f"--model.init_args.policy={folder / 'runs' / 'iu_tiny_sft' / 'policy'}"
    main(["fit", f"--config={CONFIGS / 'iu_tiny.yaml'}", policy, "--model.init_args.rollout.group_size=2", *common])
    for name in ("iu_tiny_sft", "iu_tiny"):
        main(["predict", f"--config={CONFIGS / name}.yaml", policy if name == "iu_tiny" else "--name=iu_tiny_sft",
              *([f"--model.init_args.tiny={tiny}"] if name == "iu_tiny_sft" else []), *common])  # fmt: skip
    for index in range(3):
        (folder / f"{index}.png").write_bytes((folder / "data" / "images" / f"test{index}" / "0.png").read_bytes())
    (folder / "data").rename(folder / "gone")
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["iu_tiny_sft", "iu_tiny"])
def test_reports_are_those_of_the_test_split(home, name, capsys, monkeypatch):
    """The same images give the same completions as in the run's data, although these are not there any more."""
    monkeypatch.chdir(home)
    config = home / "runs" / name / "config.yaml"
    before = (home / "runs" / name / "predict.jsonl").read_bytes()
    main(["predict", f"--config={config}", "--images", "0.png", "1.png", "2.png", "--output", "out.jsonl"])
    rows, expected = lines(home / "out.jsonl"), lines(home / "runs" / name / "predict.jsonl")
    assert [row["images"] for row in rows] == [["0.png"], ["1.png"], ["2.png"]]
    assert [row["completion"] for row in rows] == [row["completion"] for row in expected]
    assert set(rows[0]) == {"id", "images", "prediction", "thinking", "completion"}
    out = capsys.readouterr().out
    assert all(f"\n{k}.png\n" in out for k in range(3))
    assert "3 reports: out.jsonl" in out
    assert "MCCS" not in out
    assert (home / "runs" / name / "predict.jsonl").read_bytes() == before


def test_a_page_stands_beside_the_reports_that_are_written_elsewhere(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    run = Path("runs") / "iu_tiny_sft"
    before = {path: path.read_bytes() for path in run.glob("gallery*.html")}
    assert before
    config = f"--config={run / 'config.yaml'}"
    for name in ("one", "two"):
        main(["predict", config, "--images", "0.png", "--output", f"{name}.jsonl"])
        assert f"Gallery: {name}.gallery.html\n" in capsys.readouterr().out
    assert "<title>one: 1 study<" in Path("one.gallery.html").read_text()
    assert Path("two.gallery.html").is_file()
    assert {path: path.read_bytes() for path in run.glob("gallery*.html")} == before


def test_the_latest_run_and_several_images_as_one_study(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    main(["predict", "--images", "[01].png", "--as_one_study", "true"])
    out, notes = capsys.readouterr()
    run = Path("runs") / "iu_tiny"
    assert notes.startswith(f"Latest run: {run}\npredict: {run / 'checkpoints' / 'best.ckpt'}\n")
    assert out.startswith("\n0.png, 1.png\n")
    assert [row["images"] for row in lines(run / "images.jsonl")] == [["0.png", "1.png"]]


@pytest.mark.parametrize("name", ["iu_tiny_sft", "iu_tiny"])
def test_a_run_on_a_file_of_rexrank(home, name, capsys, monkeypatch):
    """A submission of a finished run: into a folder of its own, the same completions, the run's results untouched."""
    monkeypatch.chdir(home)
    run = home / "runs" / name
    entries = {f"s{k}": {"image_path": [f"{k}.png"], "section_findings": "Clear.", "age": k} for k in range(3)}
    (home / "rexrank.json").write_text(json.dumps(entries))
    configs = [f"--config={run / 'config.yaml'}", f"--config={CONFIGS / 'data' / 'rexrank.yaml'}"]
    data = [f"--data.init_args.{key}" for key in ("root=.", "file=rexrank.json", "images=.")]
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    main(["predict", *configs, *data])
    written = json.loads((run / "rexrank" / "rexrank.json").read_text())
    expected = [row["prediction"] for row in lines(run / "predict.jsonl")]
    assert [entry.pop("model_prediction") for entry in written.values()] == expected
    assert written == entries
    main(["test", *configs, *data])
    assert json.loads((run / "rexrank" / "results.json").read_text())["num_studies"] == 3
    assert "most frequent report" not in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_no_image_is_left_out_and_odd_names_are_names(home, capsys, monkeypatch):
    """The run's own test split was cut to three studies."""
    monkeypatch.chdir(home)
    names = ["a b.png", "c[1].png", "it's.png", 'say "ah".png']
    for name in names:
        (home / name).write_bytes((home / "0.png").read_bytes())
    main(["predict", "--images", *names, "--output", "odd.jsonl"])
    assert [row["images"] for row in lines(home / "odd.jsonl")] == [[name] for name in names]


def test_an_image_that_cannot_be_read_does_not_cost_the_other_reports(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(home)
    (tmp_path / "many").mkdir()
    for k in range(3):
        (tmp_path / "many" / f"{k}.png").write_bytes((home / f"{k}.png").read_bytes())
    (tmp_path / "many" / "z.png").write_text("no image")
    (tmp_path / "many" / "zz.png").write_bytes((home / "0.png").read_bytes())
    argv = [
        "--images",
        str(tmp_path / "many"),
        "--data.init_args.eval_batch_size=2",
        f"--output={tmp_path / 'o.jsonl'}",
    ]
    main(["predict", *argv])
    written = {name: [str(tmp_path / "many" / f"{stem}.png") for stem in stems] for name, stems in
               {"all": ("0", "1", "2", "zz"), "first": ("0", "1")}.items()}  # fmt: skip
    assert [row["images"][0] for row in lines(tmp_path / "o.jsonl")] == written["all"]
    assert "Skipped in predict: 1 of 5 studies with unreadable images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", *argv, "--data.init_args.on_error=raise"])
    text = capsys.readouterr()
    assert text.err.strip().endswith("To skip such studies, set --data.init_args.on_error skip.")
    assert [row["images"][0] for row in lines(tmp_path / "o.jsonl")] == written["first"]
    assert "Stopped after 2 of 5 studies." in text.out
    assert text.out.endswith(f"2 reports: {tmp_path / 'o.jsonl'}\n")


def failure(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(["predict", *argv])
    err = capsys.readouterr().err.strip()
    return stop.value.code, err.splitlines()[-1]


def test_mistakes_are_one_line(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    (home / "note.png").write_text("no image")
    (home / "empty").mkdir(exist_ok=True)
    assert failure(capsys, ["--images", "note.png"]) == (
        2,
        "mrg: No study of split 'predict' can be read: Study note.png: Image note.png is not an image of "
        "a known format; replace it by a PNG, JPEG or DICOM file.",
    )
    assert failure(capsys, ["--images", "nope.png"])[1].startswith("mrg: 1 image does not exist: nope.png")
    assert failure(capsys, ["--images", "empty"])[1].startswith("mrg: Folder empty holds no image")
    assert failure(capsys, ["--images", "0.png", "1.png", "2.png", "--as_one_study"]) == (
        2,
        "mrg: The study has 3 images, but the policy reads only the first 2: pass fewer, or set "
        "--model.init_args.max_views=3.",
    )
    assert failure(capsys, ["--images", "0.png", "--output", "no/out.jsonl"])[1].startswith("mrg: no/out.jsonl cannot")
    assert failure(capsys, ["--images"])[1].endswith("argument --images: expected at least one argument")
    assert failure(capsys, ["--images", "0.png", "--blurred"])[1] == "error: unrecognized arguments: --blurred"


def test_without_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("a.png")
    code, line = failure(capsys, ["--images", "a.png"])
    assert (code, line.startswith(f"mrg: No run with a checkpoint in {tmp_path / 'runs'}")) == (2, True)


def test_a_tiny_policy_that_was_not_saved(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    run = home / "runs" / "iu_tiny_sft"
    (run / "policy").rename(run / "moved")
    try:
        code, line = failure(capsys, [f"--config={run / 'config.yaml'}", "--images", "0.png"])
    finally:
        (run / "moved").rename(run / "policy")
    assert code == 2
    assert "policy holds no policy: let `fit` finish, or use the data of the run." in line
