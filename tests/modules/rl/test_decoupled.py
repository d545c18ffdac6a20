"""Parts of a reward that are normalized one by one: by hand, against TRL, and what is logged."""

import pytest
import torch

from mrg.modules.rl.decoupled import decoupled_terms, part_statistics, scaled
from mrg.modules.rl.settings import LossSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL and transformers
HALF = 0.5**0.5


def advantages(parts, weights, group_size, present=None, eps=1e-4):
    terms = decoupled_terms(parts, weights, group_size, present, eps)
    summed = torch.stack(list(terms.values())).sum(0)
    scored = None if not present else torch.stack([present[name] for name in terms if name in present]).any(0)
    values = summed if scored is None else summed[scored]
    return scaled(summed, float(values.std()), scored, eps)


def test_by_hand():
    """Two groups of two: the finding decides in the first, the format in the second; only weights count."""
    parts = {
        "mccs": torch.tensor([0.01, 0.0, 0.5, 0.5], dtype=torch.float64),
        "format": torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64),
    }
    terms = decoupled_terms(parts, {"mccs": 0.75, "format": 0.25}, 2, eps=0.0)
    assert terms["mccs"].tolist() == pytest.approx([0.75 * HALF, -0.75 * HALF, 0, 0])
    assert terms["format"].tolist() == pytest.approx([0, 0, -0.25 * HALF, 0.25 * HALF])
    deviation = (2 * (0.75**2 + 0.25**2) / 2 / 3) ** 0.5  # of four sums with mean 0
    expected = [0.75 * HALF, -0.75 * HALF, -0.25 * HALF, 0.25 * HALF]
    got = advantages(parts, {"mccs": 0.75, "format": 0.25}, 2, eps=0.0)
    assert got.tolist() == pytest.approx([value / deviation for value in expected])


def test_a_dead_part_adds_exactly_zero():
    parts = {"a": torch.full((8,), 0.35), "b": torch.rand(8, generator=torch.Generator().manual_seed(0))}
    parts["b"][4:] = 0.7
    terms = decoupled_terms(parts, {"a": 0.75, "b": 0.25}, 4, eps=0.0)
    assert terms["a"].tolist() == [0.0] * 8
    assert advantages(parts, {"a": 0.75, "b": 0.25}, 4)[4:].tolist() == [0.0] * 4
    # So the part has no say: the advantages are those of the other part alone.
    alone = advantages({"b": parts["b"]}, {"b": 0.25}, 4)
    assert torch.equal(advantages(parts, {"a": 0.75, "b": 0.25}, 4), alone)


def test_parts_that_are_missing_or_have_no_weight():
    generator = torch.Generator().manual_seed(1)
    parts = {name: torch.rand(8, generator=generator, dtype=torch.float64) for name in "abc"}
    present = {"a": torch.tensor([True, True, False, True] + [False] * 4), "b": torch.tensor([True] * 3 + [False] * 5)}
    weights = {"a": 1.0, "b": 0.5, "c": 0.0}
    terms = decoupled_terms(parts, weights, 4, present)
    assert set(terms) == {"a", "b"}
    assert (terms["a"] != 0).tolist() == present["a"].tolist()
    own = parts["a"][[0, 1, 3]]
    assert terms["a"][[0, 1, 3]].tolist() == pytest.approx(((own - own.mean()) / (own.std() + 1e-4)).tolist())
    assert advantages({n: parts[n] for n in "ab"}, weights, 4, present)[4:].tolist() == [0.0] * 4
    for term in terms.values():
        assert float(term.sum()) == pytest.approx(0, abs=1e-12)  # so that TRL subtracts a mean of 0


@pytest.mark.parametrize("seed", range(3))
def test_equals_trl(trainer, monkeypatch, seed):
    """TRL normalizes rewards within the step that samples: it samples, and is handed the rewards."""
    g = torch.Generator().manual_seed(seed)
    weights = {"mccs": 0.75, "format": 0.25, "own": 0.5}
    rewards = torch.rand(12, 3, generator=g)
    rewards[:, 1] = (rewards[:, 1] > 0.5).float()
    rewards[4:8, 1] = 1.0  # dead in this group
    rewards[8:, 2] = torch.nan  # does not apply to this study
    rewards[1, 2] = torch.nan
    rewards[3] = torch.nan  # no reward at all
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *_: rewards.clone())
    monkeypatch.setattr(trainer, "reward_weights", torch.tensor(list(weights.values())))
    monkeypatch.setattr(trainer, "reward_funcs", [None] * 3)
    monkeypatch.setattr(trainer, "reward_func_names", list(weights))
    monkeypatch.setattr(trainer, "num_generations", 4)
    monkeypatch.setattr(trainer, "multi_objective_aggregation", "normalize_then_sum")
    trainer.model.train()
    theirs = trainer._generate_and_score_completions([{"prompt": "a"}] * 12)["advantages"]
    parts = {name: rewards[:, k].double() for k, name in enumerate(weights)}
    present = {name: ~rewards[:, k].isnan() for k, name in enumerate(weights)}
    assert advantages(parts, weights, 4, present).tolist() == pytest.approx(theirs.double().tolist(), abs=1e-6)
    assert float(theirs.abs().max()) > 0.5


def test_statistics_by_hand():
    parts = {"a": torch.tensor([1.0, 0.0, 0.5, 0.5]), "b": torch.tensor([0.0, 1.0, 1.0, 0.0])}
    terms = decoupled_terms(parts, {"a": 3.0, "b": 1.0}, 2, eps=0.0)
    values = part_statistics(terms, parts, 2)
    assert values["share/a"] == pytest.approx(6 / 10)
    assert values["share/b"] == pytest.approx(4 / 10)
    assert (values["dead/a"], values["dead/b"]) == (0.5, 0.0)
    # Terms, in units of 1/sqrt(2): a 3 -3 0 0, b -1 1 1 -1, sum 2 -2 1 -1.
    assert values["correlation/a"] == pytest.approx(12 / (18 * 10) ** 0.5)
    assert values["correlation/b"] == pytest.approx(-2 / (4 * 10) ** 0.5 * 1, abs=1e-12)
    parts["a"] = torch.ones(4)
    terms = decoupled_terms(parts, {"a": 3.0, "b": 1.0}, 2)
    assert "correlation/a" not in part_statistics(terms, parts, 2)


def test_two_scales_exclude_each_other():
    with pytest.raises(ValueError, match="set advantage_scale to auto, not batch"):
        LossSettings(aggregation="normalize_then_sum", advantage_scale="batch")
    with pytest.raises(ValueError, match=r"loss\.aggregation to be 'sum_then_normalize' or 'normalize_then_sum'"):
        LossSettings(aggregation="gdpo")
