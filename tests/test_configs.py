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
from tests.trees import REPORTS, write_iu_tree, write_mimic_tree

# Ablations name such files, but are not configurations of `fit`: see tests/commands/ablate.
FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
CONFIGS = [path for path in FILES if "arms" not in yaml.safe_load(path.read_text())]
PARTS = sorted((Path(__file__).parent.parent / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_parses_and_names_its_run(config):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={config}", "--print_config"])
    assert stop.value.code == 0
    assert f"name: {config.stem}\n" in out.getvalue()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_validates_however_few_batches_an_epoch_has(config):
    """With a small dataset or many processes, validation after a number of batches counts across epochs."""
    trainer = yaml.safe_load(config.read_text())["trainer"]
    by_share = isinstance(trainer["val_check_interval"], float)
    assert by_share == ("check_val_every_n_epoch" not in trainer)
    assert trainer.get("check_val_every_n_epoch") is None


@pytest.mark.parametrize("part", PARTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_part_composes_with_a_config(part):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={part.parents[1] / 'iu.yaml'}", f"--config={part}", "--print_config"])
    assert stop.value.code == 0
    composed, own = yaml.safe_load(out.getvalue()), yaml.safe_load(part.read_text())
    assert_within(own, composed)


def assert_within(part, whole):
    """Every setting of a part is in the whole."""
    if isinstance(part, dict):
        for name, value in part.items():
            assert_within(value, whole[name])
    elif isinstance(part, list):
        assert len(part) == len(whole)
        for value, other in zip(part, whole, strict=True):
            assert_within(value, other)
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
    # Eight studies are four batches per epoch: the file validates after a fraction of an epoch.
    short = ["--trainer.max_steps=2", "--data.init_args.batch_size=2"]
    main(["fit", *common, *short, "--model.init_args.rollout.group_size=4"])
    run = tmp_path / "runs" / "iu"
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/logp_gap"]]
    assert [row["step"] for row in rows] == ["0", "1"]
    assert all(float(row["train/logp_gap"]) < 0.05 for row in rows)
    main(["test", *common])
    assert f"test: {run / 'checkpoints' / 'best.ckpt'}" in capsys.readouterr().err
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["test0", "test1", "test2"]
    assert [len(line["images"]) for line in lines] == [num_views] * 3
    results = json.loads((run / "results.json").read_text())
    assert set(results["systems"]) == {"constant normal", "most frequent report", "model"}


def test_mimic_config_takes_steps_with_priors_on_a_published_checkpoint(tmp_path, capsys):
    save_published_format(tmp_path / "policy", [*REPORTS, "<think>Cardiomegaly</think>"])
    write_mimic_tree(tmp_path / "reports", tmp_path / "jpg")
    common = [
        f"--config={next(path for path in CONFIGS if path.stem == 'mimic')}",
        f"--runs={tmp_path / 'runs'}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--model.init_args.policy={tmp_path / 'policy'}",
        "--model.init_args.max_new_tokens=12",
        "--model.init_args.use_prior=true",
        "--model.init_args.use_indication=true",
        f"--data.init_args.image_root={tmp_path / 'jpg'}",
        f"--data.init_args.report_root={tmp_path / 'reports'}",
        f"--data.init_args.index={tmp_path / 'index'}",
        "--data.init_args.prior=true",
        "--data.init_args.num_workers=1",
    ]
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--data.init_args.batch_size=2"]
    main(["fit", *common, *short, "--model.init_args.rollout.group_size=4"])
    assert f"MIMIC-CXR: index of 10 rows in {tmp_path / 'index'}, 1 of 1 shards built" in capsys.readouterr().err
    main(["test", *common])
    notes = capsys.readouterr().err
    assert notes.count(f"MIMIC-CXR: index of 10 rows in {tmp_path / 'index'}.") == 1
    (line,) = map(json.loads, (tmp_path / "runs/mimic/predictions.jsonl").read_text().splitlines())
    assert (line["id"], line["target"]) == ("50000010", "The lungs are clear.")
    assert [Path(image).stem for image in line["images"]] == ["j1", "j2"]


def test_priors_that_the_data_does_not_have_are_one_line(tmp_path, capsys):
    write_mimic_tree(tmp_path, tmp_path)
    given = [f"--data.init_args.image_root={tmp_path}", f"--data.init_args.report_root={tmp_path}"]
    given += [f"--data.init_args.index={tmp_path / 'index'}", "--model.init_args.use_prior=true"]
    save_published_format(tmp_path / "policy", list(REPORTS))
    config = next(path for path in CONFIGS if path.stem == "mimic_sft")
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                f"--config={config}",
                f"--runs={tmp_path}",
                f"--model.init_args.policy={tmp_path / 'policy'}",
                *given,
            ]
        )
    assert "mrg: No study has a prior: set model.init_args.use_prior to false, or data.init_args.prior to true." in (
        capsys.readouterr().err
    )
