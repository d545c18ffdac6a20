"""Rounds and hours by number of GPUs, by hand and by the loader of training batches."""

import dataclasses
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from mrg.cli import main
from mrg.commands.size.activations import Training
from mrg.commands.size.memory import Plan
from mrg.commands.size.schedule import Schedule, schedule
from mrg.datamodules.loading import StudySampler

PLAN = Plan(Training(2, True, 16, True), batch_size=8, group_size=8, max_new_tokens=256, text_tokens=80)


def settings(max_epochs=3, max_steps=-1, val_check_interval=0.25, check_val_every_n_epoch=1):
    return SimpleNamespace(
        max_epochs=max_epochs, max_steps=max_steps, val_check_interval=val_check_interval,
        check_val_every_n_epoch=check_val_every_n_epoch,
    )  # fmt: skip


@pytest.mark.parametrize(("gpus", "rounds", "validations"), [(1, 774, 12), (2, 387, 12), (8, 96, 12), (64, 12, 12)])
def test_iu_by_number_of_gpus(gpus, rounds, validations):
    """2,069 studies: 258 whole batches of 8, 129 on 2 GPUs, 32 on 8 and 4 on 64, three times."""
    plan = dataclasses.replace(PLAN, world_size=gpus)
    found = schedule(settings(), plan, 2069, 296)
    assert (found.rounds, found.validations) == (rounds, validations)
    sampler = StudySampler(range(2069), 0, gpus, 0)
    assert 3 * len(DataLoader(range(2069), 8, sampler=sampler, drop_last=True)) == rounds


def test_tokens_and_hours_by_hand():
    found = schedule(settings(), dataclasses.replace(PLAN, world_size=8), 2069, 296)
    prompt = 80 + 2 * 330
    assert found.train_tokens == 8 * (prompt + 8 * 256)
    assert found.val_tokens == 37 * (prompt + 256)
    assert Schedule(10, 3, 7200, 1200).hours(2.0) == (10.0, 0.5)


def test_steps_end_a_run_and_an_interval_may_be_a_number_of_rounds():
    found = schedule(settings(-1, 70, 14, None), PLAN, 4000, 128)
    assert (found.rounds, found.validations) == (70, 5)
    found = schedule(settings(max_steps=300), PLAN, 2069, 296)
    assert (found.rounds, found.validations) == (300, 4)  # 258 rounds with 4 validations, then 42 without one
    assert schedule(settings(), PLAN, 3, 0).rounds == 3  # fewer studies than a batch: one batch per epoch


def test_command(capsys):
    common = ["size", "--config=iu", "--geometry=7b", "--devices", "1", "8"]
    main([*common, "--studies", "2069", "296", "--tokens_per_second", "1000"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:36].strip(): line[36:].split() for line in lines}
    assert rows["studies per round"] == ["8", "64"]
    assert rows["rounds"] == ["774", "96"]
    hours = [float(value) for value in rows["hours of training, estimated"]]
    assert hours[0] == pytest.approx(8 * hours[1], rel=0.05)
    for wrong, message in (
        (["--tokens_per_second", "5"], "requires --studies"),
        (["--studies", "0"], "studies to be above 0"),
        (["--studies", "1", "2", "3"], "1 or 2 numbers"),
    ):
        with pytest.raises(SystemExit):
            main([*common, *wrong])
        assert message in capsys.readouterr().err
