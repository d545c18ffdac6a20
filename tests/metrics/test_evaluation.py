import json

import pytest

from mrg.metrics import MCCS, RulesLabeler
from mrg.metrics.evaluation import (
    CONSTANT_NORMAL,
    evaluate_systems,
    format_table,
    most_frequent_report,
    remark_on_frequency,
)

TARGET = ["The heart is enlarged. No pleural effusion.", "Small left pleural effusion.", "No pneumothorax."] * 20


def test_perfect_and_constant_systems():
    results = evaluate_systems(
        {"perfect": TARGET, "constant normal": [CONSTANT_NORMAL] * 60},
        TARGET,
        RulesLabeler(),
        formats={"perfect": 1.0},
        differences=[("perfect", "constant normal")],
        num_resamples=200,
    )
    perfect, constant = (results["systems"][n] for n in ("perfect", "constant normal"))
    assert all(s == {"value": 1.0, "low": 1.0, "high": 1.0} for k, s in perfect["scores"].items() if "micro" in k)
    assert constant["scores"]["CE-F1 micro-13+"]["value"] == 0
    assert constant["scores"]["CE-F1 example-14"]["value"] == pytest.approx(1 / 3)  # No Finding on every third study
    assert constant["distinct"] == pytest.approx(1 / 60)
    assert results["support"]["Cardiomegaly"] == 20
    gap = next(d for d in results["differences"] if d["score"] == "CE-F1 micro-13+")
    assert gap["value"] == 1.0
    text = format_table(json.loads(json.dumps(results)))
    assert max(map(len, text.splitlines())) <= 112
    assert "perfect - constant normal, MCCS" in text


def test_nothing_written_is_worth_nothing_where_nothing_was_stated():
    results = evaluate_systems({"silent": ["", " "]}, ["Chest.", "Chest."], RulesLabeler(), num_resamples=50)
    assert results["empty_references"] == 1
    assert results["systems"]["silent"]["scores"]["MCCS"]["value"] == 0
    metric = MCCS(labeler=RulesLabeler())
    metric.update(["", "Chest."], ["Chest.", "Chest."])
    assert float(metric.compute()) == 0.5


def test_a_table_without_a_finding_says_so():
    line = "No reference states a finding: CE-F1 over 13 or 5 conditions is 0 whatever is written. Take other studies."
    for target, said in ((["No edema.", "The lungs are clear."], True), (["No edema.", "Possible edema."], False)):
        results = evaluate_systems({"a": target}, target, RulesLabeler(), num_resamples=20)
        lines = format_table(results).splitlines()
        assert (line in lines) is said
        assert max(map(len, lines)) <= 112


def test_remark_on_frequency():
    assert remark_on_frequency(["a", "b", "a"], "row", "reference") == ""
    assert remark_on_frequency(["a"], "row", "reference") == ""
    remark = remark_on_frequency(["b", "a"], "row", "reference")
    assert remark == "No reference occurs twice: the row 'row' is the first one of the alphabet and says little."


def test_most_frequent_report():
    assert most_frequent_report(["b", "a", "c", "b"]) == "b"
    assert most_frequent_report(["b", "a", "a", "b"]) == most_frequent_report(["a", "b", "b", "a"]) == "a"
    assert most_frequent_report(["c", "b"]) == most_frequent_report(["b", "c"]) == "b"
    with pytest.raises(ValueError, match="at least one report"):
        most_frequent_report([])
