import pytest
import torch

from mrg.metrics import RulesLabeler
from mrg.metrics.calibration import Calibration, choose_threshold
from mrg.metrics.conditions import CONDITIONS, THIRTEEN
from mrg.metrics.uncertainty import (
    as_digits,
    calibration_scores,
    compare_choices,
    count_table,
    disagreements,
    format_calibration,
    format_choices,
    format_cost,
    from_digits,
    thresholds_of,
    uncertainty,
    validated_scores,
)


def digits(**found):
    names = [name.lower().replace(" ", "_") for name in CONDITIONS]
    return "".join(str(found.get(name, 0)) for name in names)


def test_digits_hold_labels_and_empty_reports():
    torch.manual_seed(0)
    labels, written = torch.randint(0, 4, (5, 14)), torch.tensor([True, True, False, True, True])
    rows = as_digits(labels, written)
    again, has_report = from_digits(rows)
    assert rows[2] == ""
    assert torch.equal(has_report, written)
    assert torch.equal(again[written], labels[written])


def test_thresholds_depend_on_the_counts_alone():
    torch.manual_seed(0)
    found = torch.rand(60, 13) < 0.3
    shares = (torch.rand(60, 13) * 4 + found).floor().clamp(max=4) / 4
    table = count_table(shares.double(), found, 4)
    assert [sum(total for total, _ in row) for row in table.values()] == [60] * 13
    for point in ("f1", "precision=.5", "recall=.8"):
        expected = [choose_threshold(shares[:, i].double(), found[:, i], point) for i in range(13)]
        assert thresholds_of(table, point).tolist() == pytest.approx(expected)


def test_choices_are_compared_with_greedy_on_the_same_studies():
    edema, nothing = digits(edema=1), digits()
    note = {"choices": {"mccs": 1}, "sample_labels": ["", edema], "greedy_labels": nothing}
    reference, _ = from_digits([edema] * 8)
    result = compare_choices([note] * 8, reference, 0.5, num_resamples=20)
    assert result["greedy"]["MCCS"]["value"] == 0
    assert result["mccs"]["CE-F1 micro-13+"] == {"value": 1, "difference": 1, "low": 1, "high": 1}
    assert result["mccs"]["recall"] == {"value": 1}
    assert "100.0 +100.0 [+100.0,+100.0]" in format_choices(result)


def test_choices_that_a_resumed_test_lacks_are_not_compared():
    note = {"choices": {"mccs": 0, "f1": 0}, "sample_labels": [digits(edema=1)], "greedy_labels": digits()}
    reference, _ = from_digits([digits(edema=1)] * 2)
    result = compare_choices([note, {**note, "choices": {"mccs": 0}}], reference, 0.5, num_resamples=20)
    assert list(result) == ["greedy", "mccs"]


def test_scores_by_condition():
    found = torch.zeros(4, 13, dtype=torch.bool)
    found[:2, 0] = True
    scores = calibration_scores(found.double(), found, found.double() / 2)
    assert scores["shares"]["ece"] == scores["shares"]["brier"] == 0
    first = scores["calibrated"]["conditions"][THIRTEEN[0]]
    assert first == {"frequency": 0.5, "probability": 0.25, "ece": 0.25, "brier": 0.125}
    assert scores["calibrated"]["mean_ece"] == pytest.approx(0.25 / 13)


def test_uncertainty_of_tested_studies():
    shares = dict.fromkeys(THIRTEEN, 0.0) | {"Edema": 0.75}
    row = {"prediction": "Pulmonary edema.", "greedy": "No edema.", "target": "Pulmonary edema.", "shares": shares}
    rows = [{**row, "agreement": 0.9}, {**row, "prediction": "", "agreement": 0.1}]
    result = uncertainty(rows, RulesLabeler(), 0.5, None)
    assert result["points"]["greedy"] == {"precision": 0, "recall": 0}
    assert result["points"]["chosen"] == {"precision": 1, "recall": 0.5}
    assert result["risk_coverage"]["risk"] == [0, 0.5]
    assert result["scores"]["shares"]["conditions"]["Edema"]["ece"] == 0.25
    assert result["precision_recall"][0] == {"threshold": 0.75, "precision": 1, "recall": 1}


def test_findings_about_which_samples_disagree():
    shares = dict.fromkeys(THIRTEEN, 0.0) | {THIRTEEN[0]: 0.25, THIRTEEN[2]: 0.75, THIRTEEN[3]: 0.76, THIRTEEN[4]: 0.24}
    assert disagreements(shares) == [0, 2]


def test_probabilities_of_a_study_without_a_calibration():
    found = torch.zeros(4, 13, dtype=torch.bool)
    assert list(validated_scores(found.double(), found, 4, "none")) == ["shares"]
    scores = validated_scores(found.double(), found, 4, "platt")
    assert list(scores) == ["shares", "calibrated"]
    own = scores["calibrated"]
    assert own["mean_ece"] == pytest.approx(own["conditions"]["Edema"]["ece"])
    assert own["mean_ece"] > 0
    assert format_calibration({"shares": {"ece": 0.125, "mean_ece": 0.25, "brier": 0.5}}) == (
        "Probabilities of findings, share of samples: ECE 12.5 (mean of the 13 conditions 25.0), Brier score 50.0."
    )
    assert format_calibration(scores).splitlines()[1].startswith("Probabilities of findings, calibrated: ECE ")


def test_the_cost_of_samples():
    cost = {"studies": 2, "tokens": 5000, "seconds": 3.0, "greedy_tokens": 300, "greedy_seconds": 0.5}
    assert format_cost(cost, 16) == (
        "Cost per study: 16 samples 2,500 tokens and 1.50 s, greedy 150 tokens and 0.25 s, 6.0 times the time."
    )
    assert format_cost({**cost, "greedy_seconds": 0.0, "seconds": 1e-9}, 16).endswith("0.00 s, 1.0 times the time.")


def test_the_table_of_choices():
    reference, _ = from_digits([digits(edema=1, pneumonia=1)] * 4)
    note = {"choices": {"mccs": 0}, "sample_labels": [digits(edema=1)], "greedy_labels": digits(edema=1, fracture=1)}
    lines = format_choices(compare_choices([note] * 4, reference, 0.0, num_resamples=5)).splitlines()
    assert lines == [
        "In percent, with 95 % bootstrap intervals of the difference to greedy, paired by study:",
        "                            MCCS                 micro-13+             macro-13+  precision  recall",
        "greedy                      50.0                      50.0                   7.7       50.0    50.0",
        "mccs    70.7 +20.7 [+20.7,+20.7]  66.7 +16.7 [+16.7,+16.7]  7.7 +0.0 [+0.0,+0.0]      100.0    50.0",
    ]


def test_curves_of_many_studies_have_a_hundred_points():
    row = {"prediction": "Edema.", "greedy": "Edema.", "target": "Edema.", "shares": dict.fromkeys(THIRTEEN, 0.5)}
    result = uncertainty([{**row, "agreement": i} for i in range(101)], RulesLabeler(), 0.5, None)
    coverage = result["risk_coverage"]["coverage"]
    assert len(coverage) == len(result["risk_coverage"]["risk"]) == 100
    assert (coverage[0], coverage[-1]) == (1 / 101, 1)
    assert result["risk_coverage"]["area"] == 0


def test_uncertainty_with_a_calibration():
    row = {"prediction": "Edema.", "greedy": "Edema.", "target": "Edema.", "agreement": 1.0}
    shares = dict.fromkeys(THIRTEEN, 0.0) | {"Edema": 0.5}
    fixed = Calibration("platt", 2, [[0.0, 0.0]] * 13)  # 1/2 for every finding
    result = uncertainty([{**row, "shares": shares}], RulesLabeler(), 0.5, fixed)
    assert result["precision_recall"] == [{"threshold": 0.5, "precision": pytest.approx(1 / 13), "recall": 1}]
    assert result["scores"]["calibrated"]["conditions"]["Pneumonia"]["probability"] == 0.5
    assert result["scores"]["shares"]["conditions"]["Pneumonia"]["probability"] == 0
