import math
import statistics
import warnings

import pytest
import torch

from mrg.modules.rl.advantage import combine_rewards, dead_groups, equal_groups, group_advantages, num_missing


def test_hand_computed_group():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    got = group_advantages(rewards, 4, eps=0.0)
    half = 0.5 / (1 / 3) ** 0.5
    assert got[:4].tolist() == pytest.approx([half, -half, -half, half])
    assert got[4:].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5])  # deviation exactly 1/2
    assert got.view(2, 4).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("group_size", [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(dtype, scale, group_size):
    rewards = torch.full((group_size,), 0.35, dtype=dtype)  # the mean of which is not always .35
    assert group_advantages(rewards, group_size, scale, eps=0.0).tolist() == [0.0] * group_size
    assert dead_groups(rewards, group_size).tolist() == [True]


def test_only_exactly_equal_rewards_are_dead():
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.1 + 1e-7])
    assert dead_groups(rewards, 2).tolist() == [True, False]
    assert (group_advantages(rewards, 2) != 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize(("scale", "divisor"), [("none", 1.0), ("batch", 0.5)])
def test_scales(scale, divisor):
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64) / divisor
    assert group_advantages(rewards, 4, scale, eps=0.0).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("seed", range(5))
def test_against_plain_python_with_missing_rewards(scale, seed):
    g = torch.Generator().manual_seed(seed)
    rewards = torch.rand(24, generator=g, dtype=torch.float64)
    present = torch.rand(24, generator=g) < 0.6
    rewards[4:8] = 0.35
    got = group_advantages(rewards.where(present, torch.nan), 4, scale, present=present)
    expected = []
    everything = [value for value, here in zip(rewards.tolist(), present.tolist(), strict=True) if here]
    for start in range(0, 24, 4):
        rows = [i for i in range(start, start + 4) if present[i]]
        values = [rewards[i].item() for i in rows]
        for i in range(start, start + 4):
            if i not in rows or len(set(values)) < 2:
                expected.append(0.0)
                continue
            deviation = {"group": statistics.stdev(values), "batch": statistics.stdev(everything)}.get(scale)
            expected.append((rewards[i].item() - statistics.mean(values)) / (deviation + 1e-4 if deviation else 1))
    assert got.tolist() == pytest.approx(expected, abs=1e-12)
    assert (got[~present] == 0).all()
    assert got.view(-1, 4).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_with_fewer_than_two_rewards_are_dead(scale):
    nan = torch.nan
    rewards = torch.tensor([nan, nan, nan, 0.7, nan, nan, 1.0, 0.0, nan])
    present = ~rewards.isnan()
    assert dead_groups(rewards, 3, present).tolist() == [True, True, False]
    got = group_advantages(rewards, 3, scale, present=present)
    assert (got != 0).tolist() == [False] * 6 + [True, True, False]
    assert num_missing(present) == 6
    assert num_missing(None) == 0
    assert group_advantages(rewards[:3], 3, scale, present=present[:3]).tolist() == [0.0] * 3


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_all_present_is_the_default(scale):
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everywhere = torch.ones(12, dtype=torch.bool)
    assert torch.equal(group_advantages(rewards, 4, scale), group_advantages(rewards, 4, scale, present=everywhere))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_order_of_groups_and_of_rows_changes_nothing(scale):
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.tensor([9, 8, 11, 10, 3, 1, 2, 0, 4, 7, 6, 5])
    got = group_advantages(rewards[order], 4, scale)
    assert torch.allclose(got, group_advantages(rewards, 4, scale)[order], atol=1e-14)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_failed_is_not_a_missing_one(value):
    rewards = torch.tensor([0.0, 1.0, value, 1.0])
    with pytest.raises(ValueError, match=f"`rewards` to be finite, but got {value} in row 2"):
        group_advantages(rewards, 2)
    present = torch.tensor([True, False, True, True])
    with pytest.raises(ValueError, match="in row 2"):
        group_advantages(rewards, 2, present=present)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 2, but got 1"):
        group_advantages(torch.zeros(4), 1)
    with pytest.raises(ValueError, match="'group', 'batch' or 'none'"):
        group_advantages(torch.zeros(4), 2, "other")
    with pytest.raises(ValueError, match="groups of 3, but got 4 rows"):
        group_advantages(torch.zeros(4), 3)


def test_weighted_sum_ignores_what_is_missing():
    parts = {"mccs": torch.tensor([0.5, torch.nan, 1.0, torch.nan]), "format": torch.tensor([1.0, 1.0, 0.0, 0.0])}
    present = {
        "mccs": torch.tensor([True, False, True, False]),
        "format": torch.tensor([True, True, True, False]),
    }
    rewards, scored = combine_rewards(parts, {"mccs": 0.75, "format": 0.25}, present)
    assert rewards.dtype == torch.float64
    assert rewards.tolist() == [0.625, 0.25, 0.75, 0.0]
    assert scored.tolist() == [True, True, True, False]
    # A part that is only watched scores nobody.
    _, scored = combine_rewards(parts, {"mccs": 0.75, "format": 0.0}, present)
    assert scored.tolist() == [True, False, True, False]


def test_weighted_sum_keeps_a_failure_visible():
    parts = {"mccs": torch.tensor([0.5, torch.nan]), "format": torch.tensor([1.0, 1.0])}
    rewards, scored = combine_rewards(parts, {"mccs": 0.75, "format": 0.25})
    assert scored.tolist() == [True, True]
    with pytest.raises(ValueError, match="to be finite, but got nan in row 1"):
        group_advantages(rewards, 2, present=scored)


@pytest.mark.parametrize(
    ("parts", "weights", "present"),
    [
        ({}, {}, None),
        ({"a": torch.ones(2)}, {"b": 1.0}, None),
        ({"a": torch.ones(2)}, {"a": 1.0}, {"b": torch.ones(2)}),
    ],
)
def test_weighted_sum_of_other_names(parts, weights, present):
    with pytest.raises(ValueError, match="`weights` and `present` to name parts of"):
        combine_rewards(parts, weights, present)


def test_a_group_of_one_reward_is_dead_but_not_equal():
    rewards = torch.tensor([0.7, torch.nan, 0.7, 0.7, -5.0, -5.0])
    present = ~rewards.isnan()
    assert equal_groups(rewards, 2, present).tolist() == [False, True, True]
    assert dead_groups(rewards, 2, present).tolist() == [True, True, True]


@pytest.mark.parametrize("missing", [torch.nan, -9.0, 0.0, 9.0])
@pytest.mark.parametrize("value", [-5.0, 0.5])
def test_a_missing_reward_does_not_make_equal_ones_differ(missing, value):
    rewards = torch.tensor([value, missing, value, value, missing, value + 1])
    present = torch.tensor([True, False, True, True, False, True])
    assert equal_groups(rewards, 3, present).tolist() == [True, False]
    assert group_advantages(rewards, 3, "none", present=present).tolist() == [0.0, 0.0, 0.0, -0.5, 0.0, 0.5]


@pytest.mark.parametrize("num", [0, 1])
def test_the_deviation_of_a_batch_with_fewer_than_two_rewards_is_not_computed(num):
    present = torch.arange(4) < num
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of a deviation without degrees of freedom
        assert group_advantages(torch.ones(4), 2, "batch", present=present).tolist() == [0.0] * 4


def test_a_given_deviation_is_that_of_all_ranks():
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert group_advantages(rewards, 2, "batch", eps=0.0, deviation=0.25).tolist() == [2.0, -2.0]
    assert group_advantages(rewards, 2, "none", eps=0.0, deviation=0.25).tolist() == [0.5, -0.5]
