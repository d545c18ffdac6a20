"""Every shipped configuration can be parsed; the 7B one runs on a checkpoint of the published format."""

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest
import yaml

from mrg.cli import main
from tests.checkpoints import save_published_format
from tests.trees import write_iu_tree

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
PARTS = sorted((Path(__file__).parent.parent / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_parses_and_names_its_run(config):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={config}", "--print_config"])
    assert stop.value.code == 0
    assert f"name: {config.stem}\n" in out.getvalue()


@pytest.mark.parametrize("part", PARTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_part_composes_with_a_config(part):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={part.parents[1] / 'iu.yaml'}", f"--config={part}", "--print_config"])
    assert stop.value.code == 0
    composed, own = yaml.safe_load(out.getvalue()), yaml.safe_load(part.read_text())
    assert_within(own, composed)


def assert_within(part, whole):
    """Every setting of a part stands in the whole."""
    if isinstance(part, dict):
        for name, value in part.items():
            assert_within(value, whole[name])
    else:
        assert part == whole


@pytest.mark.parametrize("num_views", [1, 2])
def test_iu_config_takes_two_steps_on_a_published_checkpoint(tmp_path, num_views, capsys):
    save_published_format(tmp_path / "policy", ["The heart is enlarged. No pneumothorax. <think>Cardiomegaly</think>"])
    write_iu_tree(tmp_path / "data", num_views)
    config = next(path for path in CONFIGS if path.stem == "iu")
    common = [
        f"--config={config}",
        f"--runs={tmp_path / 'runs'}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--model.init_args.policy={tmp_path / 'policy'}",
        f"--data.init_args.root={tmp_path / 'data'}",
        "--data.init_args.variant=any",
        "--data.init_args.num_workers=0",
        "--model.init_args.max_new_tokens=12",
    ]
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.init_args.batch_size=2"]
    main(["fit", *common, *short, "--trainer.check_val_every_n_epoch=null", "--model.init_args.group_size=4"])
    run = tmp_path / "runs" / "iu"
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/logp_gap"]]
    assert [row["step"] for row in rows] == ["0", "1"]
    assert all(float(row["train/logp_gap"]) < 0.05 for row in rows)
    main(["test", *common])
    assert f"test: {run / 'checkpoints' / 'best.ckpt'}" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["test0", "test1", "test2"]
    assert [len(line["images"]) for line in lines] == [num_views] * 3
    results = json.loads((run / "results.json").read_text())
    assert set(results["systems"]) == {"constant normal", "most frequent report", "model"}
