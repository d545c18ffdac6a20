"""Measuring how the rewards of studies vary, and training on those that vary."""

import json

import pytest
import torch

from mrg.datamodules.selection import Selection
from mrg.modules.rl.reward import Reward, Rewards
from mrg.modules.selection import FILE, measure, statistics
from mrg.modules.sft import SFTModule
from tests.callbacks.resuming import Stop, differences, fit, newest, on_ranks
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness, module_on, saved, trainer  # noqa: F401
from tests.nested import nested


def test_statistics_by_hand():
    nothing = torch.zeros(8, 14, dtype=torch.long)
    total = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    (mean, std), (equal, dead) = statistics(Rewards(total, {}, (nothing, nothing)), 4)
    assert (mean, equal) == (3.0, pytest.approx(0.1))
    assert std == pytest.approx((14 / 3) ** 0.5)
    assert dead == 0.0  # exactly, although the mean of four tenths rounds
    scored = torch.tensor([True, False, True, False, True, False, False, False])
    with_missing = statistics(Rewards(total, {}, (nothing, nothing), {}, scored), 4)
    assert with_missing == [(2.0, pytest.approx(2**0.5)), (pytest.approx(0.1), 0.0)]
    none = statistics(Rewards(total, {}, (nothing, nothing), {}, torch.zeros(8, dtype=torch.bool)), 4)
    assert none == [(None, 0.0), (None, 0.0)]


class Some(Shortness):
    """Pays nothing on every second study, and counts its calls."""

    def __init__(self):
        self.studies = []

    def __call__(self, texts, target, study_id):
        self.studies += study_id
        live = torch.tensor([int(name.split("-")[1]) % 2 for name in study_id], dtype=torch.float64)
        rewards = super().__call__(texts, target, study_id)
        return rewards._replace(total=rewards.total * live)


def ready(saved, studies, folder, **settings):  # noqa: F811
    module, data = module_on(saved, studies, **settings)
    data.eval_batch_size = 3
    module.trainer = trainer(0, default_root_dir=folder)
    module.trainer.datamodule = data
    module.reward = Some()
    return module


def test_an_interrupted_measurement_is_resumed(saved, studies, tmp_path):  # noqa: F811
    module = ready(saved, studies, tmp_path)
    select = Selection(samples=2)
    whole = measure(module, select, 0)
    assert len(module.reward.studies) == 8 * 2
    assert (whole.deviation > 0).tolist() == [int(study.id.split("-")[1]) % 2 == 1 for study in studies]
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    assert len(lines) == 9
    assert json.loads(lines[2]) == {"id": studies[1].id, "mean": whole.mean[1], "std": whole.deviation[1]}
    (tmp_path / FILE).write_text("".join(lines[:5]) + lines[5][:7])  # a batch and a half, and half a line
    module.reward = Some()
    again = measure(module, select, 0)
    assert len(module.reward.studies) == 5 * 2  # the second batch as a whole, and the third
    assert torch.equal(again.deviation, whole.deviation)
    assert torch.equal(again.mean, whole.mean)
    module.reward = Some()
    measure(module, Selection(samples=2, least=0.1), 0)  # other settings: from the beginning
    assert len(module.reward.studies) == 8 * 2
    with torch.no_grad():
        next(p for p in module.parameters() if p.requires_grad).add_(1)
    module.reward = Some()
    measure(module, Selection(samples=2, least=0.1), 0)  # another policy, too
    assert len(module.reward.studies) == 8 * 2


def test_only_studies_whose_rewards_vary_are_drawn(saved, studies, tmp_path, caplog):  # noqa: F811
    module, _ = module_on(saved, studies, kl_coef=0.0)
    module.reward = Some()
    data = FixedData(studies, batch_size=2, eval_batch_size=4, select=Selection(samples=2, every=2))
    with caplog.at_level("INFO", "mrg"):
        trainer(4, default_root_dir=tmp_path).fit(module, data)
    seen = module.reward.studies
    measured, trained = seen[:16], seen[16:32]
    assert sorted(set(measured)) == sorted(study.id for study in studies)
    assert len(set(trained)) == 4  # an epoch of two rounds of two of the four studies
    assert all(int(name.split("-")[1]) % 2 for name in trained)
    assert seen[32:48] == measured  # again before the third round
    assert len(seen) == 64
    assert data.measured.epoch == 1
    assert caplog.text.count("4 of 8 training studies are left out") == 2
    # A random half of the studies, another one for each epoch.
    halves = [measure(module, Selection(samples=2, studies=4), epoch).deviation for epoch in (0, 1)]
    assert [int((~half.isnan()).sum()) for half in halves] == [4, 4]
    assert not torch.equal(halves[0].isnan(), halves[1].isnan())


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_is_the_run_that_was_not_broken(saved, tmp_path, stop):  # noqa: F811
    """In the middle of the time between two measurements, and right before one."""
    settings = {"data": {"select": Selection(samples=2, every=2, use="weight")}, "max_steps": 6, "max_epochs": -1}
    if not (tmp_path / "whole").exists():
        fit(tmp_path / "whole", "grpo", saved, default_root_dir=tmp_path / "whole", **settings)
    root = {"default_root_dir": tmp_path / "broken"}
    with pytest.raises(Stop):
        fit(tmp_path / "broken", "grpo", saved, stop=(stop + 1, "step"), **settings, **root)
    (tmp_path / "broken" / FILE).unlink()  # the checkpoint holds what was measured
    fit(tmp_path / "broken", "grpo", saved, checkpoint=newest(tmp_path / "broken"), **settings, **root)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []
    assert (tmp_path / "whole" / FILE).read_text() == (tmp_path / "broken" / FILE).read_text()


def test_nothing_is_measured_for_a_run_that_has_ended(saved, tmp_path):  # noqa: F811
    """Its last epoch is complete, so that a measurement would be due before another one."""
    settings = {"data": {"select": Selection(samples=2, every=2)}, "max_steps": 2, "max_epochs": -1}
    run = tmp_path / "run"
    fit(run, "grpo", saved, default_root_dir=run, **settings)
    (run / FILE).unlink()
    module = fit(run, "grpo", saved, checkpoint=newest(run), default_root_dir=run, **settings)
    assert module.reward.calls == 0
    assert not (run / FILE).exists()


def test_a_study_whose_reference_would_teach_is_selected(saved, studies, tmp_path):  # noqa: F811
    """An untrained policy writes no valid report, so that all rewards are 0; the reference gets 1.25."""
    settings = {"add_reference": True, "ce_f1_weight": 1.0, "mccs_weight": 0.0, "max_new_tokens": 200}
    module = ready(saved, studies, tmp_path, **settings)
    module.reward = Reward(module.labeler, 0.0, ce_f1_weight=1.0, think="absent")
    found = measure(module, Selection(samples=3), 0)
    assert found.mean.tolist() == [0.0] * 8  # of what the policy has written
    assert found.deviation.tolist() == pytest.approx([1.25 / 3**0.5] * 8)  # of 1.25, 0 and 0
    module.adds_references = False
    assert not measure(module, Selection(samples=3, least=0.1), 0).deviation.any()


@pytest.mark.slow
def test_two_processes_measure_as_one(saved, tmp_path):  # noqa: F811
    settings = {"data": {"select": {"samples": 2}}, "max_steps": 1, "max_epochs": -1}
    files = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        where = {"default_root_dir": str(folder), "strategy": "ddp" if devices > 1 else "auto", "devices": devices}
        code, output = on_ranks(folder, {"kind": "grpo", "policy": saved, **settings, **where})
        assert not code, output
        files.append((folder / FILE).read_text())
    assert len(files[0].splitlines()) == 11
    assert files[0] == files[1]


def test_a_module_without_a_reward_is_refused(saved, studies):  # noqa: F811
    module = SFTModule(**nested(policy=saved, **SETTINGS))
    with pytest.raises(ValueError, match="select needs a reward, which SFTModule does not have: set it to null"):
        trainer(1).fit(module, FixedData(studies, select="variance"))
