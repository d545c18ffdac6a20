"""A run that goes on with other settings: what it says, and whether that is so."""

from pathlib import Path

import pytest
import torch
import yaml

from mrg.cli import main
from mrg.modules.grpo import GRPOModule
from mrg.run.changed_settings import changed_settings, remarks
from mrg.run.checkpoints import CheckpointFolder
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


def test_many_changes_are_one_line(tmp_path):
    changed = {f"model.init_args.a{number}": (0, 1) for number in range(11)}
    (line,) = remarks(changed, tmp_path / "config.yaml")
    assert "a7 0 -> 1 and 3 more. The run goes on with the new ones" in line
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
    out = capsys.readouterr().out
    assert (
        "The checkpoint's own stay: seed_everything 0 (not 7), "
        "model.init_args.optimizer.learning_rate 0.003 (not 0.5), "
        "model.init_args.optimizer.weight_decay 0.0 (not 0.9). To change them start a new run from its policy "
        "(model.init_args.policy).\n"
    ) in out
    assert "Other settings" not in out
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
        f"Other settings than in {tmp_path / 'run' / 'config.yaml'}: model.init_args.optimizer.warmup_steps 50 -> 1, "
        "data.init_args.num_val 4 -> 3. The run goes on with the new ones, so it will not end as it would have.\n"
    )
    assert line in capsys.readouterr().out
    # It is another run from now on, of which nothing has changed.
    main(["fit", *fit_arguments(tmp_path, *given, "--trainer.max_steps=6")])
    out = capsys.readouterr().out
    assert "Other settings" not in out
    assert "The checkpoint's own stay" not in out


def test_a_run_without_its_configuration_goes_on(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path)])
    (tmp_path / "run" / "config.yaml").unlink()
    main(["fit", *fit_arguments(tmp_path, "--resume=auto", "--seed_everything=7", "--trainer.max_steps=4")])
    assert "The checkpoint's own stay" not in capsys.readouterr().out
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
            remarks(changed, Path("runs/a/config.yaml"))
    else:
        assert "Other settings" in remarks(changed, Path("runs/a/config.yaml"))[0]
