import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, precision_recall_curve

from mrg.errors import UserError
from mrg.metrics.calibration import (
    METHODS,
    Calibration,
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
