from mrg.metrics import RulesLabeler
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import evaluate_systems, format_table
from mrg.metrics.remarks import against_best, legend, remarks
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
