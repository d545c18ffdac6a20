"""Baselines as a user runs them: the same files and table as a model, and reports that can be told by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrg.cli import main
from mrg.metrics.evaluation import CONSTANT_NORMAL
from mrg.modules.baselines import Baseline, ConstantNormal, MostFrequentReport, NearestImage
from tests.trees import write_annotation, write_iu_tree

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def tree(tmp_path):
    """The test images are training images, darker: 2, 0 and 5 in this order."""
    root = tmp_path / "data"
    root.mkdir()
    content = write_iu_tree(root)
    for index, source in enumerate((2, 0, 5)):
        pixels = np.asarray(Image.open(root / "images" / f"train{source}" / "0.png")) // 2
        Image.fromarray(pixels).save(root / "images" / f"test{index}" / "0.png")
    for index, item in enumerate(content["train"]):
        item["report"] = f"Report {min(index, 6)}. The lungs are clear."
    write_annotation(root, content)
    return tmp_path


def options(tree, *more, command="test"):
    return [
        command,
        f"--config={CONFIGS / 'iu.yaml'}",
        f"--runs={tree / 'runs'}",
        f"--data.init_args.root={tree / 'data'}",
        "--data.init_args.variant=any",
        "--data.init_args.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.enable_progress_bar=false",
        *more,
    ]


def config(name):
    return f"--config={CONFIGS / 'baselines' / name}.yaml"


def predictions(tree, name):
    return [json.loads(line) for line in (tree / "runs" / name / "predictions.jsonl").read_text().splitlines()]


NEAREST = [f"Report {k}. The lungs are clear." for k in (2, 0, 5)]


@pytest.mark.parametrize(
    ("name", "expected", "source"),
    [
        ("constant_normal", [CONSTANT_NORMAL] * 3, "baseline: constant normal"),
        ("most_frequent", ["Report 6. The lungs are clear."] * 3, "baseline: most frequent report"),
        ("nearest_image", NEAREST, "baseline: nearest image of 32 x 32 pixels"),
    ],
)
def test_a_baseline_leaves_what_a_model_leaves(tree, capsys, name, expected, source):
    main(options(tree, config(name)))
    rows = predictions(tree, name)
    assert [row["prediction"] for row in rows] == expected
    assert [row["id"] for row in rows] == ["test0", "test1", "test2"]
    assert {"images", "prediction", "thinking", "completion", "target", "format", "findings"} <= set(rows[0])
    results = json.loads((tree / "runs" / name / "results.json").read_text())
    assert set(results["systems"]) == {"constant normal", "most frequent report", "model"}
    assert results["protocol"]["policy"] == source
    assert results["systems"]["model"]["format"] is None
    out = capsys.readouterr().out
    assert "95 % bootstrap intervals" in out
    if name in ("constant_normal", "most_frequent"):  # it is one of the rows of every table
        twin = "constant normal" if name == "constant_normal" else "most frequent report"
        assert results["systems"]["model"]["scores"] == results["systems"][twin]["scores"]


def test_batches_and_blocks_change_nothing(tree):
    main(options(tree, config("nearest_image"), "--data.init_args.eval_batch_size=1"))
    assert [row["prediction"] for row in predictions(tree, "nearest_image")] == NEAREST


def test_by_class_in_the_place_of_a_model_with_a_policy(tree):
    main(options(tree, "--model=mrg.modules.baselines.NearestImage", "--name=class"))
    assert [row["prediction"] for row in predictions(tree, "class")] == NEAREST


def test_by_class_with_the_tower_of_a_policy(tree, policy):
    policy.save(tree / "policy")
    model = "mrg.modules.baselines.NearestImage"
    tower = [f"--model.init_args.tower={tree / 'policy'}", "--model.init_args.dtype=auto"]
    for index, source in enumerate((2, 0, 5)):  # to the tower, unlike to pixels, brightness matters
        image = (tree / "data" / "images" / f"train{source}" / "0.png").read_bytes()
        (tree / "data" / "images" / f"test{index}" / "0.png").write_bytes(image)
    main(options(tree, f"--model={model}", *tower, "--name=tower"))
    assert [row["prediction"] for row in predictions(tree, "tower")] == NEAREST
    results = json.loads((tree / "runs" / "tower" / "results.json").read_text())
    assert results["protocol"]["policy"] == f"baseline: nearest image by {tree / 'policy'}"


def test_validate_and_predict(tree, capsys):
    main(options(tree, config("nearest_image"), command="validate"))
    assert "val/mccs" in capsys.readouterr().out
    main(options(tree, config("nearest_image"), command="predict"))
    rows = [json.loads(line) for line in (tree / "runs" / "nearest_image" / "predict.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == NEAREST


def failure(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_what_a_baseline_refuses(tree, capsys):
    for command in ("fit", "export"):
        line = failure(capsys, options(tree, config("constant_normal"), command=command))
        assert "ConstantNormal is a baseline, which is not trained" in line
    line = failure(capsys, options(tree, config("nearest_image"), "--model.init_args.tower=/no/such/policy"))
    assert "Policy '/no/such/policy' is not a checkpoint" in line
    line = failure(capsys, options(tree, config("nearest_image"), "--model.init_args.size=1"))
    assert "model.init_args.size to be at least 2, but got 1" in line
    image = str(tree / "data" / "images" / "test0" / "0.png")
    line = failure(capsys, options(tree, config("most_frequent"), "--images", image, command="predict"))
    assert line == (
        "mrg: The most frequent report needs training studies, but ImagesDataModule (train 0, val 0, test 1) has none."
    )


def test_the_results_of_a_trained_run_are_not_written_over(tree, capsys):
    run = tree / "runs" / "iu"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    (run / "predictions.jsonl").write_text("precious")
    line = failure(capsys, options(tree, "--model=mrg.modules.baselines.ConstantNormal"))
    assert line == f"mrg: {run} contains a trained run: choose another --name for the baseline."
    assert (run / "predictions.jsonl").read_text() == "precious"


def test_every_baseline_is_untrained_and_every_one_has_a_configuration():
    classes = {ConstantNormal, MostFrequentReport, NearestImage}
    assert set(Baseline.__subclasses__()) == classes
    assert not any(each.trained for each in classes)
    texts = [file.read_text() for file in (CONFIGS / "baselines").glob("*.yaml")]
    assert all(any(f"mrg.modules.baselines.{each.__name__}" in text for text in texts) for each in classes)
