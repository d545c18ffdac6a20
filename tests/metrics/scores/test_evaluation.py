"""The table of `--scores`."""

import numpy as np
import pytest

from mrg.errors import RunError
from mrg.metrics import RulesLabeler
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import evaluate_systems
from mrg.metrics.scores.evaluation import format_scores, group_rows, labeled_rows
from mrg.metrics.scores.group import Group, Row, mean
from mrg.metrics.scores.kept import KeptValues

TARGET = ["Cardiomegaly.", "Left effusion."]


@pytest.fixture(scope="module")
def results():
    systems = {"constant normal": ["Clear lungs."] * 2, "model": TARGET}
    return evaluate_systems(
        systems, TARGET, RulesLabeler(), num_resamples=4, min_cases=1, differences=[("model", "constant normal")],
        best=BestConstants.of(TARGET, RulesLabeler()),
    )  # fmt: skip


def test_rows_of_labels(results):
    rows = labeled_rows(results, ["ce", "mccs"])
    assert list(rows) == [
        "MCCS", *(f"CE-F1 {name}" for name in (
            "micro-13+", "macro-13+", "micro-14", "macro-14", "micro-14+", "micro-5+", "example-14",
        )), "informedness",
    ]  # fmt: skip
    micro = rows["CE-F1 micro-13+"]
    assert (micro["percent"], micro["higher_is_better"], micro["num_studies"]) == (True, True, 2)
    assert micro["best_constant"] == results["best_constant"]["scores"]["CE-F1 micro-13+"]
    assert [(gap["a"], gap["b"], gap["value"]) for gap in micro["differences"]] == [
        ("model", "constant normal", 1), ("model", "best constant", pytest.approx(1 / 3)),
    ]  # fmt: skip
    assert set(micro["differences"][0]) == {"a", "b", "value", "low", "high"}
    assert micro["systems"]["model"] == {"value": 1, "low": 1, "high": 1}
    assert rows["MCCS"]["convention"] == "mean over reports, margin 0.5, labels by rules"
    assert micro["convention"] == (
        "average and conditions, 13 being those without No Finding; + counts uncertain as positive; 0/0 = 0; labels by "
        "rules"
    )
    informed = "recall + specificity - 1, mean of the 2 conditions with a case, labels by rules"
    assert rows["informedness"]["convention"] == informed
    assert rows["informedness"]["best_constant"] == {"value": 0, "low": 0, "high": 0}
    assert list(labeled_rows(results, ["mccs"])) == ["MCCS"]
    assert list(labeled_rows({**results, "informative": []}, ["ce"]))[-1] == "CE-F1 example-14"
    without = labeled_rows({**results, "best_constant": None}, ["ce"])
    assert without["informedness"]["best_constant"] is without["CE-F1 micro-14"]["best_constant"] is None


def span(value, low, high):
    return {"value": value, "low": low, "high": high}


def test_the_printed_table():
    def row(higher, percent, gap, **more):
        systems = {"base": span(0.25, 0, 0.5), "other": span(0, 0, 0), "model": span(0.5, 0.25, 0.75)}
        gaps = [{"a": "model", "b": "base", **gap}]
        best = span(0.125, 0, 1) if percent else None
        return {"convention": "mean", "percent": percent, "higher_is_better": higher, "systems": systems,
                "best_constant": best, "differences": gaps, "num_studies": 1999, **more}  # fmt: skip

    rows = {
        "F1": row(True, True, span(0.25, 0.1, 0.4)),
        "errors": row(False, False, span(0.25, -0.1, 0.4), no_value={"model": [3, 4]}),
        "fewer": row(False, False, span(-0.25, -0.4, -0.1), convention="sum"),
    }
    assert format_scores(rows, 2000).splitlines() == [
        "2,000 studies; 95 % bootstrap intervals over studies. In percent, except errors, fewer.",
        "",
        "                                        model                 base                other     best constant",
        "F1                           50.0 [25.0,75.0]      25.0 [0.0,50.0]        0.0 [0.0,0.0]  12.5 [0.0,100.0]",
        "errors (lower is better)  0.500 [0.250,0.750]  0.250 [0.000,0.500]  0.000 [0.000,0.000]                 -",
        "fewer (lower is better)   0.500 [0.250,0.750]  0.250 [0.000,0.500]  0.000 [0.000,0.000]                 -",
        "",
        "F1, errors: mean.",
        "fewer: sum.",
        "model does not beat base in errors (95 % intervals of the difference).",
        "errors: reports without a score: model 2; 1,999 studies count.",
    ]
    only = format_scores({"F1": {**rows["F1"], "best_constant": None}}, 2).splitlines()
    assert only[0] == "2 studies, in percent; 95 % bootstrap intervals over studies."
    assert "best constant" not in only[2]
    touching = format_scores({"F1": row(True, True, span(0.1, 0, 0.2))}, 2)
    assert "model does not beat base in F1" in touching


def lengths(preds, target):
    """Words of the report; none for a report that says nothing."""
    return np.array([[float(len(pred.split())) or np.nan] for pred in preds])


def test_rows_of_a_group(tmp_path):
    """The reference has 1, 2 and 3 words; the third study has no value for the system and counts for no one."""
    rows = [Row("words", "mean", mean(), percent=False, higher_is_better=False)]
    best = {"words": np.array([[4.0], [4.0], [4.0]])}
    group = Group("words", rows, lengths, {"score": "words"}, 0, lambda train, target: best)
    systems = {"base": ["a", "a", "a"], "model": ["a b", "a b c d", ""]}
    target = ["a", "a b", "a b c"]
    found = group_rows(group, systems, target, KeptValues(tmp_path / "v.jsonl"), ["x"], 50, 0)["words"]
    assert {name: row["value"] for name, row in found["systems"].items()} == {"base": 1, "model": 3}
    assert found["no_value"] == {"model": [2]}
    assert found["num_studies"] == 2
    assert found["best_constant"] == {"value": 4, "low": 4, "high": 4}
    assert [(gap["a"], gap["b"], gap["value"]) for gap in found["differences"]] == [
        ("model", "base", 2), ("model", "best constant", -1),
    ]  # fmt: skip
    assert (found["differences"][0]["low"], found["differences"][0]["high"]) == (1, 3)
    assert (found["convention"], found["percent"], found["higher_is_better"]) == ("mean", False, False)
    without = group_rows(group, systems, target, KeptValues(tmp_path / "v.jsonl"), None, 5, 0)["words"]
    assert without["best_constant"] is None
    with pytest.raises(RunError, match="words: no study has a score for all of base, model"):
        group_rows(group, {**systems, "model": ["", "", ""]}, target, KeptValues(tmp_path / "w.jsonl"), None, 5, 0)


def test_equal_pairs_are_scored_once_and_values_of_a_corpus_by_their_place(tmp_path):
    seen = []

    def values(preds, target):
        seen.append(list(preds))
        return lengths(preds, target)

    kept = KeptValues(tmp_path / "v.jsonl")
    systems, target = {"model": ["a", "b c", "a"]}, ["x", "x", "x"]
    rows = [Row("words", "mean", mean())]
    for block, expected in ((2, [["a", "b c"]]), (0, [["a", "b c", "a"]])):
        seen.clear()
        group_rows(Group("words", rows, values, {"block": block}, block), systems, target, kept, None, 5, 0)
        assert seen == expected
