import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, precision_recall_curve

from mrg.errors import UserError
from mrg.metrics.calibration import (
    METHODS,
    Calibration,
    best_threshold,
    brier,
    calibration_error,
    choose_threshold,
    cross_fitted,
    parse_operating_point,
    precision_recall,
    reliability,
    risk_coverage,
)

SHARES = torch.tensor([0.0, 0.25, 0.25, 0.5, 0.75, 1.0])
FOUND = torch.tensor([False, False, True, True, False, True])


def drawn(num=4000, num_samples=8, seed=0):
    """Shares of samples of a policy that states every finding too often, and findings."""
    rng = np.random.default_rng(seed)
    truth = rng.beta(1, 3, num)
    shares = rng.binomial(num_samples, truth**0.5) / num_samples
    return torch.from_numpy(shares)[:, None], torch.from_numpy(rng.random(num) < truth)[:, None]


def test_reliability_and_its_error_by_hand():
    """Two bins: {0, .25, .25, .5} with 2 of 4 findings, {.75, 1} with 1 of 2."""
    assert reliability(SHARES, FOUND, 2) == [
        {"probability": 0.25, "frequency": 0.5, "count": 4},
        {"probability": 0.875, "frequency": 0.5, "count": 2},
    ]
    assert calibration_error(SHARES, FOUND, 2) == pytest.approx((4 * 0.25 + 2 * 0.375) / 6)
    assert calibration_error(FOUND.double(), FOUND) == 0


def test_the_brier_score_is_that_of_scikit_learn():
    assert brier(SHARES, FOUND) == pytest.approx(brier_score_loss(FOUND.numpy(), SHARES.numpy()))


def test_precision_and_recall_are_those_of_scikit_learn():
    shares, found = drawn(200)
    precision, recall, thresholds = precision_recall_curve(found[:, 0].numpy(), shares[:, 0].numpy())
    points = precision_recall(shares[:, 0], found[:, 0])
    assert [p["threshold"] for p in points] == pytest.approx(thresholds[::-1].tolist())
    assert [p["precision"] for p in points] == pytest.approx(precision[:-1][::-1].tolist())
    assert [p["recall"] for p in points] == pytest.approx(recall[:-1][::-1].tolist())


def test_thresholds_of_operating_points_by_hand():
    """By threshold 1: 1/1 and 1/3; .75: 1/2 and 1/3; .5: 2/3 and 2/3; .25: 3/5 and 1."""
    assert choose_threshold(SHARES, FOUND, "recall=.6") == pytest.approx((0.5 + 0.25) / 2)
    assert choose_threshold(SHARES, FOUND, "recall=1") == pytest.approx(0.125)
    assert choose_threshold(SHARES, FOUND, "precision=.6") == pytest.approx(0.125)
    assert choose_threshold(SHARES, FOUND, "precision=.65") == pytest.approx(0.375)
    assert choose_threshold(SHARES, FOUND, "precision=.9") == pytest.approx(0.875)
    assert choose_threshold(SHARES, FOUND, "f1") == pytest.approx(0.125)  # F1 3/4; at .5 it is 2/3
    assert choose_threshold(SHARES, ~FOUND, "precision=.9") > 1  # no threshold reaches it
    assert choose_threshold(SHARES, FOUND & False, "f1") > 1


@pytest.mark.parametrize("text", ["f2", "precision", "precision=", "precision=2", "recall=0", "f1=.5", "recall=x"])
def test_operating_points_that_are_none(text):
    with pytest.raises(UserError, match=r"Expected --operating_point to be f1, precision=P or recall=R.*but got"):
        parse_operating_point(text)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_on_fresh_studies(method):
    """The policy of `drawn` is wrong by far; a temperature alone, which keeps 1/2 at 1/2, cannot correct its ECE."""
    calibration = Calibration.fit(*drawn(), 8, method)
    shares, found = drawn(seed=1)
    probabilities = calibration(shares)
    if method != "temperature":
        assert calibration_error(probabilities, found) < 0.03 < calibration_error(shares, found)
    assert brier(probabilities, found) < brier(shares, found)
    order = probabilities[shares[:, 0].argsort(), 0]
    assert bool((order.diff() >= -1e-12).all())  # more samples, no less probable


def test_isotonic_steps_are_those_of_scikit_learn():
    shares, found = drawn(300)
    own = Calibration.fit(shares, found, 8, "isotonic")(shares)[:, 0]
    expected = IsotonicRegression(y_min=0, y_max=1).fit_transform(shares[:, 0].numpy(), found[:, 0].numpy())
    assert own.tolist() == pytest.approx(expected.tolist())


def test_platt_recovers_a_logistic_relation():
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(rng.integers(0, 17, 20_000)).double()
    logits = torch.logit((counts + 0.5) / 17)
    found = torch.from_numpy(rng.random(20_000)) < (0.5 * logits - 1).sigmoid()
    slope, bias = Calibration.fit(counts[:, None] / 16, found[:, None], 16).parameters[0]
    assert (slope, bias) == (pytest.approx(0.5, abs=0.05), pytest.approx(-1, abs=0.05))


def test_a_condition_that_never_occurs_stays_finite():
    shares = torch.zeros(50, 1)
    probability = Calibration.fit(shares, shares > 1, 8)(shares)
    assert 0 < float(probability.max()) < 0.1


def test_cross_fitting_leaves_the_study_out():
    """Without its own study, an outlier is no evidence for itself."""
    shares, found = torch.zeros(20, 1), torch.zeros(20, 1, dtype=torch.bool)
    found[0] = True
    values = cross_fitted(shares, found, 8, "isotonic")
    assert values[0].item() == 0
    assert values[1].item() == pytest.approx(1 / 16)


def test_risk_and_coverage_by_hand():
    curve = risk_coverage(torch.tensor([0.9, 0.5, 0.7]), torch.tensor([0.0, 1.0, 0.5]))
    assert curve["risk"] == pytest.approx([0, 0.25, 0.5])
    assert curve["coverage"] == pytest.approx([1 / 3, 2 / 3, 1])
    assert (curve["area"], curve["oracle"], curve["random"]) == (0.25, 0.25, 0.5)
    equal = risk_coverage(torch.ones(3), torch.tensor([0.0, 1.0, 0.5]))
    assert equal["risk"] == pytest.approx([0.5, 0.5, 0.5])


def test_an_unknown_method():
    with pytest.raises(UserError, match="Expected --calibration to be platt, temperature, isotonic or none"):
        Calibration.fit(SHARES[:, None], FOUND[:, None], 4, "beta")


def test_bins_hold_their_upper_edges():
    """Ten bins by default: 0 and .1 are in the first, .11 and .2 in the second, 1 in the last."""
    probabilities = torch.tensor([[0.0, 0.1], [0.11, 0.2], [1.0, 0.95]], dtype=torch.float64)
    found = torch.tensor([[False, True], [True, True], [True, False]])
    bins = reliability(probabilities, found)
    assert [(own["count"], own["frequency"]) for own in bins] == [(2, 0.5), (2, 1), (2, 0.5)]
    assert [own["probability"] for own in bins] == pytest.approx([0.05, 0.155, 0.975])
    # Gaps .45, .845 and .475, in one bin .3933 against 4/6.
    assert calibration_error(probabilities, found) == pytest.approx((0.45 + 0.845 + 0.475) / 3)
    assert calibration_error(probabilities, found, 1) == pytest.approx(4 / 6 - 2.36 / 6)
    assert calibration_error(probabilities[:0], found[:0]) == 0


def test_the_best_threshold_by_hand():
    """Stated 1, 2 and 4 findings, .5 only together: F1 2/3, then 1/2 with .6, then 4/6 with all; the first is taken."""
    found = torch.tensor([True, False, True, False])
    assert best_threshold(torch.tensor([0.9, 0.6, 0.5, 0.5]), found) == (pytest.approx(0.75), pytest.approx(2 / 3))
    assert best_threshold(torch.tensor([0.4, 0.8]), torch.tensor([True, True])) == (pytest.approx(0.2), 1)
    assert best_threshold(torch.tensor([0.4, 0.8]), torch.tensor([False, False])) == (1, 0)
    assert best_threshold(torch.tensor([0.2, 0.8]), torch.tensor([False, True])) == (pytest.approx(0.5), 1)


def test_operating_points():
    assert parse_operating_point("f1") == ("f1", 0)
    assert parse_operating_point("precision=1") == ("precision", 1)
    assert parse_operating_point("recall=.25") == ("recall", 0.25)
    assert precision_recall(torch.tensor([0.5]), torch.tensor([False])) == [
        {"threshold": 0.5, "precision": 0, "recall": 0}
    ]
    # Two equal probabilities: the threshold is half of the lowest one, where nothing is below it.
    assert choose_threshold(torch.tensor([0.6, 0.6]), torch.tensor([True, True]), "precision=1") == pytest.approx(0.3)
    assert choose_threshold(SHARES, ~FOUND, "precision=1") == choose_threshold(SHARES, FOUND & False, "f1") == 1.01


def test_a_calibration_by_hand():
    """Logits of (k + 1/2) / (N + 1) for N = 2: 1/6, 1/2 and 5/6, that is, -ln 5, 0 and ln 5."""
    shares = torch.tensor([[0.0], [0.5], [1.0]])
    assert Calibration("platt", 2, [[1.0, 0.0]])(shares).flatten().tolist() == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    expected = [1 / 26, 1 / 2, 25 / 26]  # odds to the power of 2
    assert Calibration("temperature", 2, [[2.0, 0.0]])(shares).flatten().tolist() == pytest.approx(expected)
    assert Calibration("platt", 2, [[0.0, 1.0]])(shares)[0].item() == pytest.approx(1 / (1 + np.exp(-1)))


def test_smoothed_targets_of_platt():
    """Equal shares: the slope stays 1 and the bias gives the mean of the targets, (n + 1) / (n + 2) and 1 / (m + 2)."""
    shares, found = torch.full((5, 1), 0.5), torch.tensor([[True], [False], [False], [True], [False]])
    (slope, bias), target = Calibration.fit(shares, found, 2).parameters[0], (2 * 3 / 4 + 3 * 1 / 5) / 5
    assert (slope, bias) == (pytest.approx(1), pytest.approx(np.log(target / (1 - target)), abs=1e-4))
    assert Calibration.fit(shares, found, 2, "temperature").parameters == [[pytest.approx(1), 0]]
    with torch.inference_mode():
        assert Calibration.fit(shares, found, 2).parameters[0] == pytest.approx([slope, bias])


def test_the_parts_of_cross_fitting():
    """Study i is in part i % 5: the values of part 0 are those of a fit to the other four parts."""
    shares, found = drawn(23)
    got = cross_fitted(shares, found, 8, "platt")
    for part in range(5):
        rest = torch.arange(23) % 5 != part
        expected = Calibration.fit(shares[rest], found[rest], 8)(shares[~rest])
        assert got[~rest].flatten().tolist() == pytest.approx(expected.flatten().tolist())
    two = cross_fitted(shares[:2], found[:2], 8, "isotonic")
    assert two.flatten().tolist() == found[:2].flip(0).flatten().double().tolist()
    one = cross_fitted(shares[:1].float(), found[:1], 8, "platt")
    assert (one.dtype, one.item()) == (torch.float64, shares[0].item())


def test_risk_by_an_order_that_is_wrong():
    """The worst report is the most confident: 1, (1 + .25) / 2 and so on; the oracle keeps 0, 0, .5 and 1 in order."""
    curve = risk_coverage(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([1.0, 0.0, 0.5, 0.0]))
    assert curve["risk"] == pytest.approx([1, 1.25 / 2, 1.5 / 3, 1.5 / 4])
    assert curve["area"] == pytest.approx((1 + 0.625 + 0.5 + 0.375) / 4)
    assert curve["random"] == pytest.approx(1.5 / 4)
    assert curve["oracle"] == pytest.approx((0 + 0 + 0.5 / 3 + 1.5 / 4) / 4)
