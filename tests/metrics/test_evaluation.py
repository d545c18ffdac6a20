import json
import math

import pytest
import torch

from mrg.metrics import CONVENTIONS, MCCS, RulesLabeler, ce_f1, ce_table
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import (
    CONSTANT_NORMAL,
    evaluate_systems,
    format_conventions,
    format_nlg,
    format_table,
    most_frequent_report,
    remark_on_frequency,
)
from tests.metrics.test_ce import PREDS as LABELS
from tests.metrics.test_ce import TARGET as REFERENCE

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
    line = "No reference contains a finding, so CE-F1 over 13 or 5 conditions is 0 for any report. Use other studies."
    for target, said in ((["No edema.", "The lungs are clear."], True), (["No edema.", "Possible edema."], False)):
        results = evaluate_systems({"a": target}, target, RulesLabeler(), num_resamples=20)
        lines = format_table(results).splitlines()
        assert (line in lines) is said
        assert max(map(len, lines)) <= 112


def test_remark_on_frequency():
    assert remark_on_frequency(["a", "b", "a"], "row", "reference") == ""
    assert remark_on_frequency(["a"], "row", "reference") == ""
    remark = remark_on_frequency(["b", "a"], "row", "reference")
    assert remark == (
        "No reference occurs more than once: the row 'row' is the first in alphabetical order, an arbitrary choice."
    )


def test_most_frequent_report():
    assert most_frequent_report(["b", "a", "c", "b"]) == "b"
    assert most_frequent_report(["b", "a", "a", "b"]) == most_frequent_report(["a", "b", "b", "a"]) == "a"
    assert most_frequent_report(["c", "b"]) == most_frequent_report(["b", "c"]) == "b"
    with pytest.raises(ValueError, match="at least one report"):
        most_frequent_report([])


def test_every_convention_beside_a_constant_normal_report():
    table = ce_table(LABELS, REFERENCE)
    assert list(table.scores) == list(CONVENTIONS)
    normal = torch.zeros_like(REFERENCE)
    normal[:, 13] = 1
    for name, setting in CONVENTIONS.items():
        row = table.scores[name]
        for score in ("precision", "recall", "f1"):
            assert row[score] == float(ce_f1(LABELS, REFERENCE, **setting, score=score))
        assert row["normal"] == float(ce_f1(normal, REFERENCE, **setting))
    # No Finding is right in one of four reports, and is the only finding written: precision 1/4, recall 1/6 and 1/8.
    assert table.scores["micro-14"]["normal"] == pytest.approx(2 / (4 + 5))
    assert table.scores["example-14"]["normal"] == 0.25
    assert table.scores["micro-13+"]["normal"] == 0


def test_the_conditions_of_a_table():
    row = ce_table(LABELS, REFERENCE).conditions["Pleural Effusion"]
    assert row == {"f1": 0, "precision": 0, "recall": 0, "support": 1}
    row = ce_table(LABELS, REFERENCE).conditions["Fracture"]
    assert row["support"] == 0
    assert math.isnan(row["f1"])


def test_a_printed_table():
    text = str(ce_table(LABELS, REFERENCE))
    assert max(map(len, text.splitlines())) <= 100
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["micro-14"] == ["micro-14", "50.0", "60.0", "54.5", "22.2", "r2gen,", "llava-rad"]
    assert lines["Fracture"] == ["Fracture", "-", "-", "-", "0"]
    assert lines["Consolidation"] == ["Consolidation", "100.0", "100.0", "100.0", "1"]


def test_chosen_conventions_and_strings():
    assert list(ce_table(LABELS, REFERENCE, conventions="r2gen").scores) == ["micro-14", "macro-14"]
    names = ["miura", "micro-5+", "example"]
    assert list(ce_table(LABELS, REFERENCE, conventions=names).scores) == ["micro-5+", "example-14"]
    table = ce_table(["Edema."], ["Edema."], RulesLabeler(), "micro-13+")
    assert table.num_reports == 1
    assert table.scores["micro-13+"]["f1"] == 1
    with pytest.raises(ValueError, match="but got 'chexpert'"):
        ce_table(LABELS, REFERENCE, conventions="chexpert")


def test_the_conventions_of_one_system_as_a_table():
    target = ["Cardiomegaly.", "Left effusion."]
    best = BestConstants.of(target, RulesLabeler())
    systems = {"constant normal": ["Clear lungs."] * 2, "model": target}
    results = evaluate_systems(systems, target, RulesLabeler(), num_resamples=4, best=best, min_cases=1)
    lines = format_conventions(results, "model").splitlines()
    assert lines[:2] == [
        "CE of model in every convention, in percent, followed by the F1 of the other rows.",
        "convention    precision  recall    F1 [95 % interval]  constant normal  best constant   reported by",
    ]
    assert lines[11] == (
        "macro-14+          14.3    14.3     14.3 [14.3, 14.3]              0.0            9.5   f1chexbert, llava-rad"
    )
    assert lines[26:29] == [
        "",
        "condition (+)               precision  recall     F1  informedness  support  predicted",
        "Enlarged Cardiomediastinum          -       -      -             -        0          0",
    ]
    assert lines[29] == "Cardiomegaly                    100.0   100.0  100.0         100.0        1          1"
    assert len(lines) == 41
    without = evaluate_systems(systems, target, RulesLabeler(), num_resamples=4)
    assert "best constant" not in format_conventions(without, "model")
    per_condition = without["systems"]["model"]["per_condition"]
    assert per_condition["Fracture"] == {
        "f1": 0, "precision": 0, "recall": 0, "informedness": None, "support": 0, "predicted": 0,
    }  # fmt: skip
    assert per_condition["Cardiomegaly"]["informedness"] == 1


def test_the_table_of_systems():
    target = ["Cardiomegaly.", "Left effusion."]
    best = BestConstants.of(target, RulesLabeler())
    systems = {"constant normal": ["Clear lungs."] * 2, "model": target}
    results = evaluate_systems(
        systems, target, RulesLabeler(), num_resamples=4, best=best, min_cases=1, formats={"model": 0.5},
        differences=[("model", "constant normal")], scorers={"words": lambda preds, target: [0.5, 1.0]},
    )  # fmt: skip
    lines = format_table(results).splitlines()
    assert lines[:2] == [
        "2 studies, labeler rules, MCCS margin 0.5; 95 % bootstrap intervals over studies.",
        "In percent. CE-F1 over 13 conditions (without No Finding); +: uncertain counts as positive; 0/0 = 0.",
    ]
    assert " ".join(lines[2:6]) == (
        "Support (positive or uncertain), 2 findings: Enlarged Cardiomediastinum 0, Cardiomegaly 1, Lung Opacity 0, "
        "Lung Lesion 0, Edema 0, Consolidation 0, Pneumonia 0, Atelectasis 0, Pneumothorax 0, Pleural Effusion 1, "
        "Pleural Other 0, Fracture 0, Support Devices 0, No Finding 0. References that mention none of the 13 "
        "conditions: 0.0 %. "
    )
    assert lines[6].split() == [
        "MCCS", "micro-13+", "macro-13+", "informedness", "words", "distinct", "format",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[7:10]] == ["constant", "best", "model"]
    assert lines[7].split()[-5] == "0.750"
    assert lines[7].split()[-3:] == ["50", "%", "-"]
    assert lines[8].split()[-5:] == ["0.0", "[0.0,0.0]", "-", "-", "-"]
    assert lines[9].split()[-4:] == ["100", "%", "50", "%"]
    assert lines[10:12] == [
        "model - constant normal, MCCS: +100.0 [+100.0, +100.0]",
        "model - constant normal, CE-F1 micro-13+: +100.0 [+100.0, +100.0]",
    ]
    assert lines[13] == "model - best constant, CE-F1 micro-13+: +33.3 [+33.3, +33.3]"


def test_the_table_of_wording():
    scores = {"normalization": "none", "a": {"BLEU-1": 0.5, "CIDEr": 1.25}, "bb": {"BLEU-1": 0.25, "CIDEr": 0.5}}
    assert format_nlg(scores) == (
        "NLG with normalization none, in percent (CIDEr: 0 to 10): similarity of wording, not of findings; not "
        "clinical evidence.\n    BLEU-1  CIDEr\na     50.0  1.250\nbb    25.0  0.500"
    )
