import dataclasses

import pytest

from mrg.metrics import RulesLabeler
from mrg.metrics.conditions import THIRTEEN
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import evaluate_systems, format_table
from mrg.metrics.remarks import against_best, collapses, legend, remarks, wrapped
from mrg.metrics.tables import macro_informedness

TARGET = ["The heart is enlarged.", "Small left pleural effusion.", "The lungs are clear.", "No edema."] * 100
LABELER = RulesLabeler()


def evaluated(min_cases=10, **systems):
    best = BestConstants.of(TARGET[:40], LABELER)
    return evaluate_systems(systems, TARGET, LABELER, num_resamples=50, best=best, min_cases=min_cases)


def test_a_system_that_reads_the_images_has_no_remarks():
    results = evaluated(model=TARGET)
    assert remarks(results) == []
    assert results["systems"]["model"]["scores"]["informedness"] == {"value": 1, "low": 1, "high": 1}
    assert results["informative"] == ["Cardiomegaly", "Pleural Effusion"]


def test_few_distinct_reports_are_counted():
    # Three reports for 400 studies, all of them findings, but by the number of the study.
    results = evaluated(model=[*["Edema."] * 200, *["Fracture of a rib."] * 199, "Pneumothorax."])
    assert "model writes 3 of 400 distinct reports, fewer than 1 %." in remarks(results)
    assert "model finds nothing that is there: none of the findings that it states is correct." in remarks(results)
    assert not [line for line in remarks(evaluated(model=TARGET)) if "distinct" in line]  # 4 of 400 are 1 %


def test_nothing_found_and_nothing_informed():
    lines = remarks(evaluated(model=["The lungs are clear."] * 400, **{"constant normal": TARGET[2:3] * 400}))
    assert len(lines) == 4
    assert "model finds nothing: none of its reports states one of the 13 conditions." in lines
    assert "model does not show that its findings depend on the image: informedness is not above 0." in lines
    assert "does not beat the best constant report in " in lines[0]
    assert "CE-F1 micro-13+, CE-F1 macro-13+ (95 % intervals of the difference)." in lines[0]


def test_informedness_is_that_of_the_metric_and_stands_in_the_table():
    preds = [text if i % 3 else "The heart is enlarged." for i, text in enumerate(TARGET)]
    results = evaluated(model=preds)
    own = results["systems"]["model"]["scores"]["informedness"]
    assert own["value"] == macro_informedness(preds, TARGET, labeler=LABELER)
    assert own["low"] < own["value"] < own["high"]
    lines = format_table(results).splitlines()
    head = next(line for line in lines if line.endswith(("distinct  format", "distinct format")))
    assert head.split() == ["MCCS", "micro-13+", "macro-13+", "informedness", "distinct", "format"]
    assert "mean of the 2 conditions with at least 10 cases; 0 for any constant." in "\n".join(lines)


def test_informedness_without_enough_cases_is_undefined():
    results = evaluated(min_cases=101, model=TARGET)
    assert "informedness" not in results["systems"]["model"]["scores"]
    assert legend(results)[0] == "informedness is undefined: no condition has at least 101 cases in the references."
    row = next(line for line in format_table(results).splitlines() if line.startswith("model "))
    assert row.split()[-4:] == ["-", "1", "%", "-"]


def test_lines_of_a_comparison():
    results = evaluated(one=TARGET, two=TARGET[1:] + TARGET[:1])
    lines = against_best(results)
    assert lines[0].startswith("one - best constant, MCCS: +")
    assert len([line for line in lines if " - best constant, " in line]) == 4
    without = evaluate_systems({"one": TARGET}, TARGET, LABELER, num_resamples=5)
    assert against_best(without)[0].startswith("The best constant report is not known: test the first run again")


def collapsed(distinct, number, predicted=1, support=1, micro=0.5):
    own = {"per_condition": {"Edema": {"predicted": predicted}}, "distinct": distinct / number}
    own["scores"] = {"CE-F1 micro-13+": {"value": micro}}
    results = {"num_studies": number, "support": dict.fromkeys(THIRTEEN, support), "systems": {"m": own}}
    return collapses(results, "m")


def test_reports_that_repeat_each_other():
    assert collapsed(1, 100) == ["m writes 1 of 100 distinct reports."]
    assert collapsed(1, 101) == ["m writes 1 of 101 distinct reports, fewer than 1 %."]
    assert collapsed(19, 2000) == ["m writes 19 of 2,000 distinct reports, fewer than 1 %."]
    assert collapsed(20, 2000) == collapsed(2, 100) == collapsed(1, 1) == []


def test_findings_that_are_not_there():
    assert collapsed(50, 100, predicted=0) == ["m finds nothing: none of its reports states one of the 13 conditions."]
    assert collapsed(50, 100, micro=0.0) == [
        "m finds nothing that is there: none of the findings that it states is correct."
    ]
    assert collapsed(50, 100, micro=0.0, support=0) == []


def judged_by(low, informed, name="m"):
    scores = {"informedness": {"low": informed}, "CE-F1 micro-13+": {"value": 1.0}}
    own = {"per_condition": {"Edema": {"predicted": 1}}, "distinct": 1.0, "scores": scores}
    gaps = [{"a": a, "b": "best constant", "score": score, "low": low, "value": 0.5, "high": 1.0}
            for a in (name, "other") for score in ("MCCS", "CE-F1 macro-13+", "CE-F1 micro-14")]  # fmt: skip
    return {"num_studies": 10, "support": dict.fromkeys(THIRTEEN, 1), "systems": {name: own},
            "best_constant": {"differences": gaps}}  # fmt: skip


def test_bounds_of_differences_and_of_informedness():
    lost = "m does not beat the best constant report in MCCS, CE-F1 macro-13+ (95 % intervals of the difference)."
    blind = "m does not show that its findings depend on the image: informedness is not above 0."
    assert remarks(judged_by(0.0, 0.0)) == [lost, blind]
    assert remarks(judged_by(1e-9, 1e-9)) == []
    assert remarks({**judged_by(0.0, 0.1), "best_constant": None}) == []
    for name in ("constant normal", "most frequent report", "most frequent reference", "best reference"):
        assert remarks(judged_by(0.0, 0.0, name)) == []


def test_an_interval_that_does_not_contain_its_value():
    """Seven studies with a condition each, all stated: F1 is 1/4 each; of a sample that has k of them, more."""
    target = ["Enlarged heart.", "Effusion.", "Pneumothorax.", "Fracture.", "Edema.", "Consolidation.", "Atelectasis."]
    best = BestConstants.of(target, LABELER)
    results = evaluate_systems({"model": target}, target, LABELER, num_resamples=200, best=best)
    span = results["best_constant"]["scores"]["CE-F1 macro-13+"]
    assert span["value"] == pytest.approx(7 / 13 / 4)
    assert span["low"] > span["value"]
    assert [line.partition(":")[0] for line in remarks(results) if "interval of" in line] == [
        "The interval of best constant in CE-F1 macro-13+ does not contain the value"
    ]


def test_what_a_legend_says():
    best = BestConstants(2, 5, "rules", 0.5, {"MCCS": [0] * 14, "CE-F1 micro-13+": [1] * 14,
                         "CE-F1 macro-13+": [0] * 14}, {"MCCS": "Clear."})  # fmt: skip
    results = {"min_cases": 3, "informative": ["Edema"], "best_constant": dataclasses.asdict(best)}
    assert " ".join(legend(results)) == (
        "informedness: recall + specificity - 1, mean of the 1 condition with at least 3 cases; 0 for any constant. "
        "best constant: for each score, the constant with the highest score on 2 training reports (of 5, evenly "
        'spaced). MCCS: "Clear."; CE-F1 micro-13+: all 14 conditions; CE-F1 macro-13+: nothing.'
    )
    assert max(map(len, legend(results))) <= 112
    assert wrapped(["a " * 40, "b"], 10)[-1] == "b"
    assert max(map(len, wrapped(["a " * 40], 10))) <= 10
    results = {**judged_by(0.1, 0.1), "min_cases": 1, "informative": []}
    results["best_constant"] = {**dataclasses.asdict(best), **results["best_constant"], "num_reports": 5}
    lines = against_best(results)
    assert lines[0] == "m - best constant, MCCS: +50.0 [+10.0, +100.0]"
    assert lines[1] == "other - best constant, MCCS: +50.0 [+10.0, +100.0]"
    assert lines[2] == "informedness is undefined: no condition has at least 1 cases in the references."
    assert "on 5 training reports. MCCS" in " ".join(lines)
