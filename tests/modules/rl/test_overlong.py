"""The soft overlong penalty: by hand, against TRL, and as a part of the reward."""

import pytest
import torch

from mrg.modules.rl.overlong import overlong_scores, with_overlong
from mrg.modules.rl.reward import Rewards
from mrg.modules.rl.settings import RewardSettings


def test_by_hand():
    length = torch.tensor([1, 80, 85, 90, 99, 100])
    assert overlong_scores(length, 100, 20).tolist() == pytest.approx([1, 1, 0.75, 0.5, 0.05, 0])


def test_is_that_of_trl_plus_one():
    rewards = pytest.importorskip("trl.rewards")
    theirs = rewards.get_soft_overlong_punishment(50, 15)(completion_ids=[[0] * n for n in range(1, 51)])
    ours = overlong_scores(torch.arange(1, 51), 50, 15)
    assert (ours - 1).tolist() == pytest.approx(theirs, abs=1e-12)


def test_as_part_of_the_reward():
    nothing = torch.zeros(3, 14, dtype=torch.long)
    scored = torch.tensor([True, True, False])
    rewards = Rewards(torch.tensor([0.5, 0.25, 0.0]).double(), {}, (nothing, nothing), {}, scored)
    found = with_overlong(rewards, torch.tensor([10, 15, 10]), 20, 10, 0.5)
    assert found.total.tolist() == [1.0, 0.5, 0.0]
    assert found.parts["overlong"].tolist() == [1.0, 0.5, 1.0]
    found = with_overlong(rewards._replace(scored=None), torch.tensor([10, 15, 10]), 20, 10, 0.5)
    assert found.total.tolist() == [1.0, 0.5, 0.5]


def test_settings_out_of_range():
    with pytest.raises(ValueError, match=r"reward\.overlong_cache to be at least 1, but got 0"):
        RewardSettings(overlong_cache=0)
    with pytest.raises(ValueError, match=r"reward\.overlong_weight to be at least 0, but got -1"):
        RewardSettings(overlong_weight=-1.0)
