"""A run that is broken off and resumed is, bit for bit, the run that was not."""

import os
from pathlib import Path

import lightning as L
import pytest
import torch

from mrg.callbacks.checkpoint import Checkpoints
from mrg.files import count_lines
from mrg.metrics.scorer import ReportScore
from mrg.modules.policy.lora import LoRA
from mrg.modules.sft import SFTModule
from mrg.run.checkpoints import CheckpointFolder, checkpoint_name
from tests.callbacks.resuming import Stop, StopAt, differences, fit, newest, on_ranks

pytestmark = pytest.mark.filterwarnings("ignore:Sampling and training disagree")


def broken(folder, kind, policy_folder, stop, **settings):
    """The same run, broken off and resumed."""
    with pytest.raises(Stop):
        fit(folder, kind, policy_folder, stop=stop, **settings)
    fit(folder, kind, policy_folder, checkpoint=newest(folder), **settings)


# Two epochs of five rounds; validations after rounds 2, 4, 7 and 9.
@pytest.mark.parametrize(
    ("kind", "stop"),
    [
        ("grpo", (3, "step")),  # goes on right after a validation
        ("grpo", (4, "step")),  # in the middle between two
        ("grpo", (4, "validation")),  # before a validation that is due
        ("grpo", (6, "step")),  # at the beginning of an epoch, whose end was saved
        ("grpo", (7, "validation")),
        ("grpo", (10, "step")),  # in the last round
        ("sft", (3, "step")),
        ("sft", (4, "validation")),
        ("sft", (6, "step")),
    ],
)
def test_resumed_run_is_the_run_that_was_not_broken(tmp_path, policy_folder, whole, kind, stop):
    broken(tmp_path, kind, policy_folder, stop)
    assert differences(whole(kind), tmp_path) == []


SEVERAL = {"num_iterations": 2, "num_minibatches": 2}
BY_STEPS = {"max_epochs": None, "val_check_interval": 4, "check_val_every_n_epoch": None}


@pytest.mark.parametrize(
    ("kind", "stop", "settings"),
    [
        ("grpo", (8, "step"), {"module": SEVERAL}),
        ("grpo", (4, "validation"), {"module": {**SEVERAL, "resample_dead": 1}}),
        ("sft", (4, "step"), {"data": {"num_workers": 2}}),
        ("grpo", (8, "step"), {"data": {"num_workers": 2}}),
        ("grpo", (6, "step"), {"save_every": 3}),
        ("grpo", (8, "step"), {"save_every": 100}),
        ("sft", (9, "step"), BY_STEPS | {"max_steps": 12}),
        ("sft", (5, "validation"), {"val_check_interval": 1.0}),
        ("sft", (6, "step"), {"val_check_interval": 1.0, "patience": 3, "max_epochs": 4}),
        ("sft", (8, "step"), {"val_check_interval": 1.0, "patience": 1, "max_epochs": 6}),
        ("sft", (6, "step"), {"patience": 2, "max_epochs": 6, "keep": 1}),
        ("sft", (4, "step"), {"accumulate_grad_batches": 2}),
        ("grpo", (4, "step"), {"limit_val_batches": 0, "limit_train_batches": 3}),
        ("grpo", (4, "step"), {"module": {"lora": None, "reference": "copy", "learning_rate": 1e-3}}),
    ],
    ids=str,
)  # fmt: skip
def test_resumed_with_other_settings(tmp_path, policy_folder, whole, kind, stop, settings):
    broken(tmp_path, kind, policy_folder, stop, **settings)
    assert differences(whole(kind, **settings), tmp_path) == []


def test_broken_in_each_round_one_after_the_other(tmp_path, policy_folder, whole):
    for number in range(2, 11):
        with pytest.raises(Stop):
            fit(tmp_path, "grpo", policy_folder, checkpoint=newest(tmp_path), stop=(number, "step"))
    fit(tmp_path, "grpo", policy_folder, checkpoint=newest(tmp_path))
    assert differences(whole("grpo"), tmp_path) == []


def test_a_run_that_had_ended_has_nothing_left_to_do(tmp_path, policy_folder, whole):
    for settings in ({}, {"patience": 1, "max_epochs": 9}):
        folder = tmp_path / str(len(settings))
        fit(folder, "sft", policy_folder, **settings)
        fit(folder, "sft", policy_folder, checkpoint=newest(folder), **settings)
        assert differences(whole("sft", **settings), folder) == []


def test_more_steps_than_planned_at_first(tmp_path, policy_folder, whole):
    """A run that ended in the middle of an epoch goes on in the middle of it."""
    fit(tmp_path, "sft", policy_folder, max_steps=7, **BY_STEPS)
    fit(tmp_path, "sft", policy_folder, checkpoint=newest(tmp_path), max_steps=12, **BY_STEPS)
    assert differences(whole("sft", max_steps=12, **BY_STEPS), tmp_path) == []


def test_the_one_before_a_damaged_checkpoint_gives_the_same_run(tmp_path, policy_folder, whole, capsys):
    with pytest.raises(Stop):
        fit(tmp_path, "grpo", policy_folder, stop=(8, "step"))
    files = CheckpointFolder(tmp_path / "checkpoints")
    damaged, before = files.names()[:2]
    os.truncate(files.path / damaged, 1000)
    path, lines = files.newest()
    assert path == files.path / before
    assert damaged in lines[0]
    fit(tmp_path, "grpo", policy_folder, checkpoint=str(path))
    assert f"Removed newer checkpoints: {damaged}." in capsys.readouterr().err
    assert differences(whole("grpo"), tmp_path) == []


def test_best_is_what_it_was_when_the_checkpoint_was_written(tmp_path, policy_folder, whole):
    """Its file may be newer than the checkpoint that is whole: the crash came between the two."""
    with pytest.raises(Stop):
        fit(tmp_path, "sft", policy_folder, stop=(8, "step"), keep=9, monitor="val/loss")
    files = CheckpointFolder(tmp_path / "checkpoints")
    best = files.manifest()[checkpoint_name(3)]["best"]
    files.set_best(checkpoint_name(7))
    fit(
        tmp_path,
        "sft",
        policy_folder,
        checkpoint=str(files.path / checkpoint_name(3)),
        keep=9,
        monitor="val/loss",
        max_steps=3,
    )
    assert (files.path / "best.ckpt").samefile(files.path / best)


class Errors(SFTModule):
    """A score of the user's of which lower is better: 1, 3 and 2 after three validations."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.scores["errors"] = ReportScore(self.errors, higher_is_better=False)
        self.number = 0

    def errors(self, preds, target):
        return [(1.0, 3.0, 2.0)[self.number % 3]] * len(preds)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self.number += 1


def test_best_by_a_score_of_which_lower_is_better(tmp_path, policy_folder, monkeypatch):
    monkeypatch.setattr("tests.callbacks.resuming.SFTModule", Errors)
    fit(tmp_path, "sft", policy_folder, monitor="val/errors", keep=9, max_steps=6)
    files = CheckpointFolder(tmp_path / "checkpoints")
    assert {entry["best"] for entry in files.manifest().values()} == {"", checkpoint_name(2)}
    assert (files.path / "best.ckpt").samefile(files.path / checkpoint_name(2))


def test_checkpoint_holds_what_is_trained_alone(tmp_path, policy_folder):
    module = fit(tmp_path, "grpo", policy_folder, max_epochs=1)
    state = torch.load(newest(tmp_path), weights_only=True)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert set(state["state_dict"]) == trained
    assert len(trained) < len(list(module.parameters())) / 2
    assert len(state["ranks"]) == 1
    assert state["patience"] == {"bad_steps": 0, "dead_rounds": 0}


def test_patience_goes_on(tmp_path, policy_folder):
    """Nine rounds without anything to learn before the crash and one after it end the run."""
    module = {"kl_coef": 0.0, "patience": 8}

    class Dead(StopAt):
        def on_fit_start(self, trainer, pl_module):
            pl_module.rewards = lambda rollout, batch: dead(pl_module, rollout, batch)

    from mrg.modules.rl.reward import Rewards
    from tests.callbacks import resuming

    def dead(pl_module, rollout, batch):
        nothing = torch.zeros(len(rollout.texts), 14, dtype=torch.long)
        return Rewards(torch.zeros(len(rollout.texts), dtype=torch.float64), {}, (nothing, nothing))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "StopAt", Dead)
        with pytest.raises(Stop):
            fit(tmp_path, "grpo", policy_folder, stop=(6, "step"), module=module)
        with pytest.raises(RuntimeError, match="equal rewards in 8 rounds in a row"):
            fit(tmp_path, "grpo", policy_folder, checkpoint=newest(tmp_path), stop=(99, "step"), module=module)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"num_train": 12}}, "written with 10 training studies, but this run has 12"),
        ({"data": {"batch_size": 1}}, "written with 2 studies per batch, but this run has 1"),
        (
            {"module": {"lora": LoRA(8)}},
            r"its adapter has rank 4, but model.init_args.lora.rank is 8: policy\S+ differs",
        ),
        (
            {"module": {"lora": LoRA(4, 8, dropout=0.1)}},
            "its adapter has alpha 32, but model.init_args.lora.alpha is 8",
        ),
        ({"module": {"lora": None, "kl_coef": 0.0}}, "does not fit the policy"),
        ({"kind": "sft", "module": {"lora": LoRA(8)}}, "its adapter has rank 4"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_changed(tmp_path, policy_folder, settings, message):
    with pytest.raises(Stop):
        fit(tmp_path, "grpo", policy_folder, stop=(4, "step"))
    path = newest(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, checkpoint=path, policy=policy_folder, **{"kind": "grpo", **settings})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_checkpoint_of_another_program_is_refused(tmp_path, policy_folder):
    fit(tmp_path / "run", "sft", policy_folder, max_epochs=1)
    state = torch.load(newest(tmp_path / "run"), weights_only=True)
    del state["ranks"]
    torch.save(state, tmp_path / "other.ckpt")
    with pytest.raises(
        ValueError, match=r"other.ckpt does not contain the state of a run: resume from a round-\*.ckpt"
    ):
        fit(tmp_path / "new", "sft", policy_folder, checkpoint=str(tmp_path / "other.ckpt"))


def test_unknown_monitor_names_those_there_are(tmp_path, policy_folder):
    with pytest.raises(ValueError, match=r"no 'val/bleu' to choose its best checkpoint by.*val/ce_f1, .*val/mccs"):
        fit(tmp_path, "sft", policy_folder, monitor="val/bleu")


@pytest.mark.parametrize("monitor", ["val/mcsc", "vla/mccs", "mccs"])
def test_a_mistyped_monitor_is_found_before_training(tmp_path, policy_folder, monitor, monkeypatch):
    rounds = []
    monkeypatch.setattr(SFTModule, "training_step", lambda *args: rounds.append(1))
    with pytest.raises(ValueError, match=f"no '{monitor}' to choose its best checkpoint by.*val/ce_f1, .*val/mccs"):
        fit(tmp_path, "sft", policy_folder, monitor=monitor)
    assert not rounds


def test_a_mistyped_monitor_is_found_before_a_run_resumes(tmp_path, policy_folder, monkeypatch):
    fit(tmp_path, "sft", policy_folder, max_epochs=1)
    monkeypatch.setattr(SFTModule, "training_step", lambda *args: rounds.append(1))
    rounds = []
    with pytest.raises(ValueError, match=r"no 'val/mcsc' to choose its best checkpoint by.*val/ce_f1, .*val/mccs"):
        fit(tmp_path, "sft", policy_folder, monitor="val/mcsc", checkpoint=str(newest(tmp_path)))
    assert not rounds


@pytest.mark.parametrize("name", ["save_every", "keep"])
def test_bad_settings(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} to be at least 1, but got 0"):
        Checkpoints(tmp_path, **{name: 0})


def test_a_round_logs_what_is_its_own(tmp_path, policy_folder):
    """Lightning repeats a value in each row after it that has none of its own."""

    class Once(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                pl_module.log("seen", 1.0)

    from tests.callbacks import resuming

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "StopAt", lambda *args: Once())
        fit(tmp_path, "sft", policy_folder, stop=(0, ""), max_epochs=1, limit_val_batches=0)
    import csv

    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [row["seen"] for row in csv.DictReader(file)] == ["", "1.0", "", "", ""]


# Two processes


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp in parts"])
def test_two_processes(tmp_path, policy_folder, strategy):
    """Each has generators and studies of its own; a signal to one ends both after the same round."""
    settings = {"kind": "grpo", "policy": policy_folder, "save_every": 2, "strategy": strategy, "devices": 2}
    if strategy != "ddp":
        settings["module"] = {"lora": None, "reference": "copy", "learning_rate": 1e-3}  # adapters are not sharded
    code, text = on_ranks(tmp_path / "whole", settings)
    assert code == 0, text
    code, text = on_ranks(tmp_path / "parts", {**settings, "stop": [3, "signal"]})
    assert code == 0, text
    assert text.count("SIGTERM: round 3 is saved") == 1
    path = Path(newest(tmp_path / "parts"))
    assert path.is_dir() == (strategy == "fsdp in parts")
    states = torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=True)["ranks"]
    assert len(states) == 2
    code, text = on_ranks(tmp_path / "parts", {**settings, "checkpoint": str(path)})
    assert code == 0, text
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    assert count_lines(tmp_path / "parts" / "metrics.csv") > 10
    if strategy == "ddp":
        with pytest.raises(ValueError, match="was written by 2 processes, but this run has 1: use the same number"):
            fit(
                tmp_path / "parts", "grpo", policy_folder, checkpoint=newest(tmp_path / "parts"), data={"batch_size": 1}
            )
