"""What a run says that goes on: from where, and where nothing is left to train."""

import re

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from mrg.cli import main
from mrg.run.checkpoints import CheckpointFolder
from tests.callbacks.runs import fit_arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with a run of three steps, in an epoch of four, in `run`."""
    folder = tmp_path_factory.mktemp("runs")
    main(["fit", *fit_arguments(folder)])
    return folder


@pytest.mark.parametrize("steps", [3, 2])
def test_no_steps_left(place, capsys, steps):
    path = place / "run" / "checkpoints" / "round-00000003.ckpt"
    before = (place / "run" / "metrics.csv").read_bytes(), path.read_bytes()
    main(["fit", *fit_arguments(place, "--resume=auto", f"--trainer.max_steps={steps}")])
    out = capsys.readouterr().out
    assert (
        f"Resuming after round 3 from {path}.\n"
        f"Nothing is left to train: the run is at step 3, and trainer.max_steps is {steps}: raise it to train on.\n"
        f"Best checkpoint: {place / 'run' / 'checkpoints' / 'best.ckpt'}"
    ) in out
    assert ((place / "run" / "metrics.csv").read_bytes(), path.read_bytes()) == before


def test_no_epochs_left(tmp_path, capsys):
    epochs = ["--trainer.max_steps=-1", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    main(["fit", *fit_arguments(tmp_path, *epochs)])
    assert "Nothing is left" not in capsys.readouterr().out
    main(["fit", *fit_arguments(tmp_path, *epochs, "--resume=auto")])
    assert (
        "Nothing is left to train: the run is at step 4, and trainer.max_epochs is 1, of which 1 are done: raise it to "
        "train on.\n"
    ) in capsys.readouterr().out


class Stops(EarlyStopping):
    """At the first validation that is not better than 2."""

    def __init__(self):
        super().__init__("val/mccs", mode="max", patience=1, stopping_threshold=-2.0)


def test_a_run_that_ended_early_says_so(tmp_path, capsys):
    given = [f"--trainer.callbacks={__name__}.Stops", "--trainer.max_steps=20"]
    main(["fit", *fit_arguments(tmp_path, *given)])
    main(["fit", *fit_arguments(tmp_path, *given, "--resume=auto")])
    line = "the run is at step 3, and it had ended early there (early stopping, or trainer.max_time): start a new run"
    assert line in capsys.readouterr().out


def test_a_run_of_no_steps(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path, "--trainer.limit_train_batches=0")])
    out = capsys.readouterr().out
    assert "the run is at step 0, and there are no training batches: see trainer.limit_train_batches.\n" in out
    assert "No score was computed" in out
    assert "Last checkpoint" not in out


def test_from_another_runs_checkpoint(place, capsys):
    path = place / "run" / "checkpoints" / "best.ckpt"
    before = {file: file.read_bytes() for file in (place / "run").rglob("*") if file.is_file()}
    main(["fit", *fit_arguments(place, "--name=other", f"--resume={path}", "--trainer.max_steps=5")])
    out = capsys.readouterr().out
    assert f"Going on after round 3 of {path} in folder {place / 'other'}.\n" in out
    assert out.index("Going on") < out.index("Last checkpoint")
    assert not re.search("Resuming|Removed|Other settings", out)
    assert CheckpointFolder(place / "other" / "checkpoints").names()[0] == "round-00000005.ckpt"
    assert {file: file.read_bytes() for file in (place / "run").rglob("*") if file.is_file()} == before
