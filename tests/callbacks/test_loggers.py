"""Lightning's loggers beside metrics.csv, with the same names."""

import csv
import importlib.util
import json

import pytest

from mrg.cli import main
from tests.callbacks.runs import fit_arguments


def logger(tmp_path, kind, **options):
    given = {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": {"save_dir": str(tmp_path), **options}}
    return f"--trainer.logger={json.dumps(given)}"


def csv_names(tmp_path):
    with (tmp_path / "run" / "metrics.csv").open() as file:
        return set(csv.DictReader(file).fieldnames) - {"step", "epoch"}


def test_tensorboard_has_the_names_and_values_of_the_csv(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main(["fit", *fit_arguments(tmp_path, logger(tmp_path, "TensorBoardLogger", name="board"))])
    events = EventAccumulator(str(tmp_path / "board" / "version_0"))
    events.Reload()
    tags = set(events.Tags()["scalars"]) - {"epoch", "hp_metric"}
    assert tags == csv_names(tmp_path) >= {"train/loss", "train/learning_rate", "val/mccs", "val/ce_f1"}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    losses = [float(row["train/loss"]) for row in rows]
    # Peak 0.003, warm-up of 50 steps, decay of 1000 steps.
    rates = [0.003 * 1 / 50, 0.003 * 2 / 50 * 0.999, 0.003 * 3 / 50 * 0.998]
    assert [float(row["train/learning_rate"]) for row in rows] == pytest.approx(rates)
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert (tmp_path / "run" / "index.html").is_file()


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    main(["fit", *fit_arguments(tmp_path, logger(tmp_path, "WandbLogger", offline=True))])
    import wandb

    wandb.finish()
    (summary,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = records(summary.read_bytes())
    assert all(name.encode() in content for name in csv_names(tmp_path))


def records(log):
    """What a W&B log holds; 7 bytes stand before each record, which may be cut where a block of 32 kB ends."""
    content, place = b"", 7
    while place + 7 <= len(log):
        left = -place % 2**15 or 2**15
        if left < 7:
            place += left
            continue
        length = int.from_bytes(log[place + 4 : place + 6], "little")
        content += log[place + 7 : place + 7 + length]
        place += 7 + length
    return content


@pytest.mark.parametrize(("name", "package"), [("TensorBoardLogger", "tensorboard"), ("WandbLogger", "wandb")])
def test_a_logger_whose_package_is_missing(tmp_path, name, package, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == package else found(wanted))
    with pytest.raises(SystemExit) as stop:
        main(["fit", *fit_arguments(tmp_path, logger(tmp_path, name))])
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err
        == f"mrg: {name} needs the package {package}: pip install -e '.[{package}]' in the checkout\n"
    )
    assert not (tmp_path / "run").exists()
