"""The edges of the GRPO losses: an advantage of 0, nan as an option, and values at masked positions."""

import math

import pytest
import torch

from mrg.modules.rl.correction import check_correction, correction_weights
from mrg.modules.rl.loss import LOSS_TYPES, check_loss_options, grpo_loss
from tests.modules.rl.test_loss import gradient, loss_of, rows


def clipped(ratio, advantage, **options):
    """Indicators of one token with this ratio and advantage."""
    logps = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.bool)
    arguments = (logps, torch.zeros_like(logps), None, torch.tensor([advantage]), mask, 1)
    _, stats = grpo_loss(*arguments, kl_coef=0.0, **options)
    return {name: float(value) for name, value in stats.items() if name.startswith("clipped")}


def test_a_token_without_an_advantage_is_never_clipped():
    none = {"clipped_low": 0, "clipped_high": 0, "clipped_dual": 0, "clipped": 0}
    for ratio in (0.5, 4.0):
        assert clipped(ratio, 0.0, dual_clip=3.0) == none


def test_a_token_is_clipped_on_the_side_that_its_advantage_moves_it_to():
    assert clipped(0.5, -1.0) == {"clipped_low": 1, "clipped_high": 0, "clipped": 1}
    assert clipped(0.5, 1.0) == {"clipped_low": 0, "clipped_high": 0, "clipped": 0}
    assert clipped(4.0, 1.0) == {"clipped_low": 0, "clipped_high": 1, "clipped": 1}
    assert clipped(4.0, -1.0) == {"clipped_low": 0, "clipped_high": 0, "clipped": 0}


def test_the_dual_clip_is_for_negative_advantages():
    assert clipped(4.0, 1.0, dual_clip=3.0) == {"clipped_low": 0, "clipped_high": 1, "clipped_dual": 0, "clipped": 1}
    assert clipped(4.0, -1.0, dual_clip=3.0) == {"clipped_low": 0, "clipped_high": 0, "clipped_dual": 1, "clipped": 1}
    assert clipped(2.0, -1.0, dual_clip=3.0) == {"clipped_low": 0, "clipped_high": 0, "clipped_dual": 0, "clipped": 0}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("garbage", [torch.inf, torch.nan])
def test_weights_of_masked_tokens_count_for_nothing(loss_type, garbage):
    """In `gspo` all tokens of a completion share a ratio: a weight that is nan would reach its gradient."""
    logps, old, ref, advantages, mask = rows()
    weights = torch.linspace(0.5, 1.5, mask.numel(), dtype=torch.float64).view(mask.shape)
    clean, _ = loss_of(loss_type, logps, old, ref, advantages, mask, weights=weights)
    dirty, _ = loss_of(loss_type, logps, old, ref, advantages, mask, weights=weights.masked_fill(~mask, garbage))
    assert torch.equal(clean, dirty)
    assert torch.equal(gradient(clean, logps), gradient(dirty, logps))


def test_weights_scale_the_policy_loss_but_not_the_kl_term():
    logps, old, ref, advantages, mask = rows()
    policy, _ = loss_of("grpo", logps, old, None, advantages, mask, kl_coef=0.0)
    both, _ = loss_of("grpo", logps, old, ref, advantages, mask, kl_coef=0.1)
    twice, _ = loss_of("grpo", logps, old, ref, advantages, mask, kl_coef=0.1, weights=torch.full_like(old, 2.0))
    assert float(twice.detach()) == pytest.approx(float((both + policy).detach()), abs=1e-14)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_stats_carry_no_gradient(loss_type):
    logps, old, ref, advantages, mask = rows()
    dual_clip = None if loss_type in ("cispo", "sapo") else 1.5
    loss, stats = loss_of(loss_type, logps, old, ref, advantages, mask, dual_clip=dual_clip)
    assert loss.requires_grad
    assert [name for name, value in stats.items() if value.requires_grad] == []


def test_nan_is_no_option():
    for name in ("clip_low", "clip_high", "dual_clip"):
        with pytest.raises(ValueError, match=f"`{name}` to be at least .*, but got nan"):
            check_loss_options(**{name: math.nan})
    with pytest.raises(ValueError, match="`ratio_limit` to be above 1, but got nan"):
        check_correction("truncate", math.nan)


def test_options_at_their_limits():
    check_loss_options(clip_low=0.0, clip_high=0.0, dual_clip=1.0)
    check_loss_options(clip_high=0.25, dual_clip=1.25)
    with pytest.raises(ValueError, match="`ratio_limit` to be above 1, but got 1"):
        check_correction("mask", 1.0)


def test_a_ratio_at_the_limit_is_kept():
    mask = torch.ones(1, 3, dtype=torch.bool)
    ratio = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64)
    weights, beyond = correction_weights(ratio.log(), torch.zeros_like(ratio), mask, "mask", 2.0)
    torch.testing.assert_close(weights, ratio, rtol=1e-15, atol=0)
    assert beyond.sum() == 0
