import math

import pytest
import torch

from mrg.metrics import MCCS, RulesLabeler, ccs, mccs
from tests.metrics.test_ce import PREDS, TARGET, random_labels


def test_worked_cosines():
    assert ccs(PREDS, TARGET, empty="zero").tolist() == pytest.approx([0.2887, 0.0, 0.6667, 0.0], abs=5e-5)


def test_denied_findings():
    """Denying p findings while matching k negatives: (k - p) / (k + p)."""
    for p, k, expected in ((1, 4, 0.6), (1, 6, 5 / 7), (2, 6, 0.5)):
        target = torch.tensor([[1] * p + [2] * k + [0] * (14 - p - k)])
        preds = torch.tensor([[2] * (p + k) + [0] * (14 - p - k)])
        assert float(ccs(preds, target)) == pytest.approx(expected, abs=1e-15)
        for margin, paid in ((0.3, (expected - 0.3) / 0.7), (0.5, max(0, 2 * expected - 1)), (0.8, 0.0)):
            assert float(mccs(preds, target, margin)) == pytest.approx(paid, abs=1e-15)


def test_equal_to_the_cosine_of_torch():
    preds, target = random_labels(500)
    signs = torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=torch.float64)
    expected = torch.cosine_similarity(signs[preds[:, :13]], signs[target[:, :13]])
    torch.testing.assert_close(ccs(preds, target, uncertain=0.5), expected, rtol=0, atol=1e-12)


def test_range_symmetry_and_flips():
    labels, other = random_labels(300)
    assert (ccs(labels, labels) == 1).all()  # exactly: the dot product and both norms are integers
    assert torch.equal(ccs(labels, other), ccs(other, labels))
    assert float(ccs(labels, other).abs().max()) <= 1
    flipped = labels.clone()
    flipped[labels == 1], flipped[labels == 2], flipped[labels == 3] = 2, 1, 2
    assert torch.equal(ccs(flipped, other), -ccs(labels, other))
    assert torch.equal(ccs(flipped, labels), -torch.ones(300, dtype=torch.float64))
    for margin in (0.0, 0.3, 0.9):
        scores = mccs(labels, other, margin, reduction="none")
        assert 0 <= float(scores.min()) <= float(scores.max()) <= 1
        assert torch.equal(scores > 0, ccs(labels, other) > margin)
        assert (mccs(labels, labels, margin, reduction="none") == 1).all()
    assert bool((mccs(labels, other, 0.2, reduction="none") >= mccs(labels, other, 0.4, reduction="none")).all())


def test_zero_vectors():
    zero, full = torch.zeros(1, 14, dtype=torch.long), TARGET[:1]
    assert [float(ccs(zero, zero, empty=e)) for e in ("match", "zero")] == [1.0, 0.0]
    assert math.isnan(float(ccs(zero, zero, empty="nan")))
    for empty in ("match", "zero", "nan"):
        assert float(ccs(zero, full, empty=empty)) == float(ccs(full, zero, empty=empty)) == 0
    # No Finding alone is a zero vector over 13 conditions, not over 14.
    normal = zero.clone()
    normal[0, 13] = 1
    assert float(ccs(normal, zero)) == 1
    assert float(ccs(normal, zero, conditions=14)) == 0
    assert float(ccs(normal, normal, conditions=14, empty="zero")) == 1


def test_undefined_reports_are_left_out_of_the_mean():
    target, preds = TARGET.clone(), PREDS.clone()
    preds[1] = target[1]  # No Finding alone
    scores = mccs(preds, target, 0.0, empty="nan", reduction="none")
    assert scores.isnan().tolist() == [False, True, False, False]
    expected = (1 / math.sqrt(12) + 2 / 3 + 0) / 3
    assert float(mccs(preds, target, 0.0, empty="nan")) == pytest.approx(expected)
    metric = MCCS(0.0, empty="nan")
    for i in range(4):
        metric.update(preds[i : i + 1], target[i : i + 1])
    assert float(metric.compute()) == pytest.approx(expected)


def test_conditions_and_uncertain():
    # Edema u / p, Cardiomegaly p / p, Effusion p / n of the first pair.
    assert float(ccs(PREDS[:1], TARGET[:1], conditions=["Edema"])) == 1
    assert float(ccs(PREDS[:1], TARGET[:1], conditions=["Edema"], uncertain=-1)) == -1
    assert float(ccs(PREDS[:1], TARGET[:1], conditions=["Edema"], uncertain=0)) == 0
    # 5 conditions, uncertain 1/2: (1 + .5 - 1) / sqrt((1 + .25 + 1) * 3)
    got = float(ccs(PREDS[:1], TARGET[:1], uncertain=0.5, conditions=5))
    assert got == pytest.approx(0.5 / math.sqrt(2.25 * 3))


def test_strings():
    labeler = RulesLabeler()
    preds, target = ["Cardiomegaly. No edema.", " ", "Chest."], ["Cardiomegaly.", "Chest.", "Chest."]
    scores = mccs(preds, target, 0.0, reduction="none", labeler=labeler)
    # White space is no report: not even where the reference states nothing.
    assert scores.tolist() == pytest.approx([1 / math.sqrt(2), 0, 1])
    metric = MCCS(0.0, labeler=labeler)
    assert metric.scores(preds, target).tolist() == scores.tolist()
    metric.update(preds, target)
    assert float(metric.compute()) == pytest.approx(float(scores.mean()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 1}, r"`margin` to be in \[0, 1\), but got 1"),
        ({"margin": -0.1}, r"`margin` to be in \[0, 1\), but got -0.1"),
        ({"uncertain": 2}, r"`uncertain` to be in \[-1, 1\], but got 2"),
        ({"margin": "high"}, "`margin` to be a number, but got 'high'"),
        ({"uncertain": "positive"}, "`uncertain` to be a number, but got 'positive'"),
        ({"empty": "one"}, "`empty` to be 'match', 'zero' or 'nan', but got 'one'"),
        ({"conditions": ["Cough"]}, "but got 'Cough'"),
    ],
)
def test_bad_arguments(arguments, message):
    for call in (lambda: MCCS(**arguments), lambda: mccs(PREDS, TARGET, **arguments)):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="'mean' or 'none', but got 'sum'"):
        mccs(PREDS, TARGET, reduction="sum")


def test_a_small_value_of_uncertain_findings_is_no_zero_vector():
    """One uncertain finding on both sides: the norms are 1e-4 each, and the cosine is 1."""
    labels = torch.tensor([[0, 3] + [0] * 12])
    assert float(ccs(labels, labels, uncertain=0.01)) == pytest.approx(1, abs=1e-14)
    assert float(ccs(labels, labels, uncertain=1e-30)) == pytest.approx(1, abs=1e-14)
