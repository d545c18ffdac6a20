"""Entropy bonus and uncertain tokens: by hand, and against TRL."""

import math

import pytest
import torch

from mrg.modules.rl.entropy import EntropyBonus, EntropySettings, entropy_threshold


def test_a_fixed_weight():
    bonus = EntropyBonus(EntropySettings(coef=0.1))
    assert bonus.applied == 0.1
    bonus.update(3.0)
    assert bonus.applied == 0.1
    assert EntropySettings(coef=0.1).has_bonus
    assert EntropySettings(target=1.0).has_bonus
    assert not EntropySettings().has_bonus


def test_the_weight_follows_its_target():
    """Up where the entropy is at most the target, down elsewhere, and applied after a step of low entropy alone."""
    bonus = EntropyBonus(EntropySettings(coef=0.1, target=1.0, delta=0.04, most=0.15))
    seen = [bonus.applied]
    for entropy in (0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.9):
        bonus.update(entropy)
        seen.append((round(bonus.coef, 9), bonus.applied > 0))
    up, down = [(0.14, True), (0.15, True)], [(0.11, False), (0.07, False), (0.03, False), (0.0, False), (0.0, False)]
    assert seen == [0.0, *up, *down, (0.04, True)]


def test_a_resumed_weight():
    settings = EntropySettings(coef=0.1, target=1.0)
    first, again = EntropyBonus(settings), EntropyBonus(settings)
    first.update(0.5)
    again.load_state_dict(first.state_dict())
    assert (again.coef, again.applied) == (first.coef, first.applied)
    fixed = EntropyBonus(EntropySettings(coef=0.3))
    fixed.load_state_dict(first.state_dict())
    assert fixed.coef == 0.3


def test_the_threshold_by_hand():
    assert entropy_threshold(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), 0.25) == 3.0
    assert entropy_threshold(torch.tensor([]), 0.25) == math.inf
    assert entropy_threshold(torch.tensor([0.5, 0.1]), 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_uncertain_tokens_are_those_of_trl(trainer, share):
    entropy = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 3, 1, 4, 5, 2])[:, None]
    theirs = trainer.get_high_entropy_mask(entropy, mask, 1 - share)
    ours = mask & (entropy >= entropy_threshold(entropy[mask], share))
    assert torch.equal(ours, theirs)
    assert 0 < int(ours.sum()) < int(mask.sum())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coef": -0.1}, "loss.entropy.coef to be at least 0, but got -0.1"),
        ({"target": 0.0}, "loss.entropy.target to be above 0, but got 0.0"),
        ({"delta": 0.0}, "loss.entropy.delta to be above 0"),
        ({"least": 2.0}, r"loss.entropy.least to be from 0 to most \(1.0\), but got 2.0"),
        ({"top_quantile": 0.0}, "loss.entropy.top_quantile to be above 0 and at most 1, but got 0.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        EntropySettings(**settings)
