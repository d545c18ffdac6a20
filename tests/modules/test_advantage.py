import pytest
import torch

from mrg.modules.advantage import dead_groups, group_advantages


def test_hand_computed_group():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    got = group_advantages(rewards, 4, eps=0.0)
    half = 0.5 / (1 / 3) ** 0.5
    assert got[:4].tolist() == pytest.approx([half, -half, -half, half])
    assert got[4:].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5])  # deviation exactly 1/2
    assert got.view(2, 4).sum(1).abs().max() < 1e-12


def test_equal_rewards_give_exactly_zero():
    rewards = torch.full((8,), 0.35)  # its float mean is not 0.35
    assert group_advantages(rewards, 8).tolist() == [0.0] * 8
    assert dead_groups(rewards, 8).tolist() == [True]
    assert dead_groups(torch.tensor([0.1, 0.1, 0.1, 0.1 + 1e-7]), 2).tolist() == [True, False]


@pytest.mark.parametrize(("scale", "divisor"), [("none", 1.0), ("batch", 0.5)])
def test_scales(scale, divisor):
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64) / divisor
    assert group_advantages(rewards, 4, scale, eps=0.0).tolist() == pytest.approx(expected.tolist())


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 2, but got 1"):
        group_advantages(torch.zeros(4), 1)
    with pytest.raises(ValueError, match="'group', 'batch' or 'none'"):
        group_advantages(torch.zeros(4), 2, "other")
