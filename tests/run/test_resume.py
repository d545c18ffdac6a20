"""Resuming a run: generators, changed settings, messages, and whether anything is left to train."""

import io
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping

from mrg.cli import main
from mrg.modules.grpo import GRPOModule
from mrg.run.checkpoints import CheckpointFolder
from mrg.run.resume import changed_settings, describe_changes, rng_state, set_rng_state
from tests.callbacks.runs import fit_arguments

ONE = {
    "seed_everything": 0,
    "name": "a",
    "save_every": 50,
    "trainer": {"max_steps": 3, "precision": None, "callbacks": None, "strategy": {"class_path": "a", "init_args": {}}},
    "model": {"class_path": "M", "init_args": {"margin": 0.1, "lora": {"rank": 4}, "scores": [1], "old": 1}},
    "data": {"init_args": {"num_workers": 2, "seed": 0}},
}


def other(**changes):
    config = yaml.safe_load(yaml.safe_dump(ONE))
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = config
        for part in parts:
            place = place[part]
        place[last] = value
    return config


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"name": "b", "save_every": 1, "trainer__max_steps": 9, "data__init_args__num_workers": 0}, {}),
        ({"seed_everything": 7}, {"seed_everything": (0, 7)}),
        ({"model__init_args__lora": None}, {}),  # no such keys any more; the checkpoint itself does not fit
        ({"model__init_args__lora__rank": 8}, {"model.init_args.lora.rank": (4, 8)}),
        ({"model__init_args__scores": [2]}, {"model.init_args.scores": ([1], [2])}),
        ({"trainer__precision": "bf16-mixed"}, {"trainer.precision": (None, "bf16-mixed")}),
        ({"trainer__callbacks": []}, {"trainer.callbacks": (None, [])}),
        ({"trainer__strategy__class_path": "b"}, {"trainer.strategy.class_path": ("a", "b")}),
        ({"data__init_args__new": 1}, {}),
    ],
)
def test_what_decides_a_run(changes, expected):
    assert changed_settings(ONE, other(**changes)) == expected


SERVERS = {"urls": ["http://a"], "correction": "truncate"}


@pytest.mark.parametrize(
    ("path", "old", "new", "changed"),
    [
        ("data.init_args.augment", None, {"rotation": 10.0}, ""),
        ("data.init_args.select", {"samples": 8}, "variance", ""),
        ("data.init_args.balance", "inverse_prevalence", {"Edema": 2}, ""),
        ("data.init_args.balance", {"Edema": 2}, {"Edema": 2, "Fracture": 3}, ""),
        ("data.init_args.balance", {"Edema": 2}, {"Edema": 2.0}, None),
        ("model.init_args.rollout.servers", SERVERS, {**SERVERS, "urls": ["http://b"]}, None),
        ("model.init_args.rollout.servers", SERVERS, {**SERVERS, "correction": "mask"}, ".correction"),
        ("model.init_args.kl", {"coef": 1}, {"coef": 1, "new": 2}, None),
    ],
)
def test_a_group_that_is_turned_on_or_off_is_a_change(path, old, new, changed):
    def config(value):
        for part in reversed(path.split(".")):
            value = {part: value}
        return value

    assert list(changed_settings(config(old), config(new))) == ([] if changed is None else [path + changed])


def test_many_changes_are_one_line(tmp_path):
    changed = {f"model.init_args.a{number}": (0, 1) for number in range(11)}
    (line,) = describe_changes(changed, tmp_path / "config.yaml")
    assert "a7 0 -> 1 and 3 more. The new values are used" in line
    assert "a8" not in line


def last(folder):
    path, _ = CheckpointFolder(folder / "checkpoints").newest()
    return torch.load(path, weights_only=True)


def test_what_the_checkpoint_keeps_changes_nothing(tmp_path, capsys):
    """Seed, rate and decay: the run is bit for bit the one that was not broken off, and its configuration says so."""
    more = ["--trainer.max_steps=6"]
    main(["fit", *fit_arguments(tmp_path, "--name=whole", *more)])
    main(["fit", *fit_arguments(tmp_path)])
    capsys.readouterr()
    given = [
        "--seed_everything=7",
        "--model.init_args.optimizer.learning_rate=0.5",
        "--model.init_args.optimizer.weight_decay=0.9",
    ]
    main(["fit", *fit_arguments(tmp_path, "--resume=auto", *given, *more)])
    notes = capsys.readouterr().err
    assert (
        "Resuming with the checkpoint's values for: seed_everything 0 (the configuration says 7), "
        "model.init_args.optimizer.learning_rate 0.003 (the configuration says 0.5), "
        "model.init_args.optimizer.weight_decay 0.0 (the configuration says 0.9). "
        "To change them, start a new run from its policy (model.init_args.policy).\n"
    ) in notes
    assert "Settings that differ" not in notes
    whole, resumed = last(tmp_path / "whole"), last(tmp_path / "run")
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert whole["optimizer_states"][0]["param_groups"] == resumed["optimizer_states"][0]["param_groups"]
    written = [yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("whole", "run")]
    for config in written:
        del config["name"], config["trainer"]["default_root_dir"]
    assert written[0] == written[1]


def test_what_the_run_takes_over_is_said_and_lasts(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path)])
    given = [
        "--resume=auto",
        "--model.init_args.optimizer.warmup_steps=1",
        "--trainer.max_steps=5",
        "--data.init_args.num_val=3",
    ]
    main(["fit", *fit_arguments(tmp_path, *given)])
    line = (
        f"Settings that differ from {tmp_path / 'run' / 'config.yaml'}: "
        "model.init_args.optimizer.warmup_steps 50 -> 1, "
        "data.init_args.num_val 4 -> 3. The new values are used, so the results will differ from those of an "
        "uninterrupted run.\n"
    )
    assert line in capsys.readouterr().err
    # It is another run from now on, of which nothing has changed.
    main(["fit", *fit_arguments(tmp_path, *given, "--trainer.max_steps=6")])
    notes = capsys.readouterr().err
    assert "Settings that differ" not in notes
    assert "Resuming with the checkpoint's values" not in notes


def test_a_run_without_its_configuration_goes_on(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path)])
    (tmp_path / "run" / "config.yaml").unlink()
    main(["fit", *fit_arguments(tmp_path, "--resume=auto", "--seed_everything=7", "--trainer.max_steps=4")])
    assert "Resuming with the checkpoint's values" not in capsys.readouterr().err
    assert last(tmp_path / "run")["global_step"] == 4


class OneGRPO(GRPOModule):
    """A user's."""


class OtherGRPO(GRPOModule):
    """Another one."""


@pytest.mark.parametrize(
    ("saved", "given", "refused"),
    [
        ("mrg.modules.sft.SFTModule", "mrg.modules.grpo.GRPOModule", True),
        ("mrg.modules.sft.SFTModule", f"{__name__}.OneGRPO", True),
        ("mrg.modules.grpo.GRPOModule", f"{__name__}.OneGRPO", False),
        (f"{__name__}.OneGRPO", f"{__name__}.OtherGRPO", False),
        ("gone.Module", "mrg.modules.grpo.GRPOModule", False),
    ],
)
def test_another_algorithm_does_not_go_on(saved, given, refused):
    changed = {"model.class_path": (saved, given)}
    if refused:
        with pytest.raises(ValueError, match="which trained SFTModule, but this run trains"):
            describe_changes(changed, Path("runs/a/config.yaml"))
    else:
        assert "Settings that differ" in describe_changes(changed, Path("runs/a/config.yaml"))[0]


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_generators_go_on_after_a_trip_through_a_file():
    random.gauss(0, 1)  # leaves a second number behind, as numpy's does
    np.random.randn()
    file = io.BytesIO()
    torch.save(rng_state(), file)
    expected = [draw() for _ in range(3)]
    file.seek(0)
    set_rng_state(torch.load(file, weights_only=True))
    assert [draw() for _ in range(3)] == expected
    assert draw() not in expected


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
    out, notes = capsys.readouterr()
    line = f"the run is at step 3, and trainer.max_steps is {steps}: raise it to continue training.\n"
    assert f"Resuming after round 3 from {path}.\nNothing is left to train: {line}" in notes
    assert f"Best checkpoint: {place / 'run' / 'checkpoints' / 'best.ckpt'}" in out
    assert ((place / "run" / "metrics.csv").read_bytes(), path.read_bytes()) == before


def test_no_epochs_left(tmp_path, capsys):
    epochs = ["--trainer.max_steps=-1", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    main(["fit", *fit_arguments(tmp_path, *epochs)])
    assert "Nothing is left" not in capsys.readouterr().err
    main(["fit", *fit_arguments(tmp_path, *epochs, "--resume=auto")])
    assert (
        "Nothing is left to train: the run is at step 4, and 1 of trainer.max_epochs 1 are done: raise it to continue "
        "training.\n"
    ) in capsys.readouterr().err


class Stops(EarlyStopping):
    """At the first validation that is not better than 2."""

    def __init__(self):
        super().__init__("val/mccs", mode="max", patience=1, stopping_threshold=-2.0)


def test_a_run_that_ended_early_says_so(tmp_path, capsys):
    given = [f"--trainer.callbacks={__name__}.Stops", "--trainer.max_steps=20"]
    main(["fit", *fit_arguments(tmp_path, *given)])
    main(["fit", *fit_arguments(tmp_path, *given, "--resume=auto")])
    line = "the run is at step 3, and it was stopped early (early stopping, or trainer.max_time): start a new run"
    assert line in capsys.readouterr().err


def test_a_run_of_no_steps(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path, "--trainer.limit_train_batches=0")])
    out, notes = capsys.readouterr()
    assert "the run is at step 0, and there are no training batches: see trainer.limit_train_batches.\n" in notes
    assert "No score was computed" in out
    assert "Last checkpoint" not in out


def test_from_another_runs_checkpoint(place, capsys):
    path = place / "run" / "checkpoints" / "best.ckpt"
    before = {file: file.read_bytes() for file in (place / "run").rglob("*") if file.is_file()}
    main(["fit", *fit_arguments(place, "--name=other", f"--resume={path}", "--trainer.max_steps=5")])
    notes = capsys.readouterr().err
    assert f"Starting {place / 'other'} from the state after round 3 in {path}.\n" in notes
    assert not re.search("Resuming|Removed|Settings that differ", notes)
    assert CheckpointFolder(place / "other" / "checkpoints").names()[0] == "round-00000005.ckpt"
    assert {file: file.read_bytes() for file in (place / "run").rglob("*") if file.is_file()} == before
