"""Best constants: against all label rows by brute force, and on the reports of IU X-Ray."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

import mrg.metrics.constants
from mrg.metrics import CONVENTIONS, FIVE, POSITIVE, RulesLabeler, ce_f1, mccs
from mrg.metrics.conditions import CONDITIONS
from mrg.metrics.constants import BestConstants, best_row, evenly_spaced
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems, format_table
from tests.metrics.test_ce import random_labels

ANNOTATION = Path(__file__).resolve().parents[3] / "shared" / "data" / "iu_xray" / "annotation.json"
SENTENCE = (
    "The heart is normal in size. The mediastinum is unremarkable. The lungs are clear. There is no pleural effusion "
    "or pneumothorax."
)
TRAIN = ["The heart is enlarged.", "No edema.", "No edema.", "Mild edema. The heart is enlarged.", "No edema. Chest."]


@pytest.mark.parametrize("average", ["micro", "macro", "weighted", "example"])
@pytest.mark.parametrize("uncertain", ["positive", "negative"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_row_is_better(average, uncertain, seed):
    """All 32 rows of the five conditions; some conditions are rare, so that several numbers of them are best."""
    target, _ = random_labels(40, seed)
    target[torch.rand(40, 14, generator=torch.Generator().manual_seed(seed)) < 0.3 + 0.2 * seed] = 0
    target[:, 4] = 0
    setting = {"average": average, "conditions": FIVE, "uncertain": uncertain}
    columns = [CONDITIONS.index(name) for name in FIVE]
    values = []
    for chosen in product((0, POSITIVE), repeat=5):
        row = torch.zeros(14, dtype=torch.long)
        row[columns] = torch.tensor(chosen)
        values.append(float(ce_f1(row.expand_as(target), target, **setting)))
    best = torch.tensor(best_row(target, **setting))
    assert float(ce_f1(best.expand_as(target), target, **setting)) == pytest.approx(max(values), abs=1e-12)
    assert max(values) > 0


def test_no_training_report_is_better():
    labeler = RulesLabeler()
    labels = labeler(TRAIN)
    best = BestConstants.of(TRAIN, labeler, 0.3)
    values = [float(mccs(row.expand_as(labels), labels, 0.3)) for row in labels]
    assert values[TRAIN.index(best.reports["MCCS"])] == max(values)
    assert best.reports["MCCS"] == "No edema."  # more frequent than "No edema. Chest.", which is worth as much
    assert best.describe("MCCS") == '"No edema."'
    assert best.describe("CE-F1 micro-13+") == "Cardiomegaly"
    assert (best.num_reports, best.total, best.labeler, best.margin) == (5, 5, "rules", 0.3)
    assert best.rows["CE-F1 micro-13+"] == [0, 1, *[0] * 12]
    assert set(best.rows) == {"MCCS", *(f"CE-F1 {name}" for name in CONVENTIONS)}


def test_nothing_to_choose_from_and_too_much(monkeypatch):
    assert BestConstants.of([], RulesLabeler()) is None
    assert BestConstants.of(["", " "], RulesLabeler()) is None
    assert BestConstants.read(None) is None
    monkeypatch.setattr(mrg.metrics.constants, "MOST_REPORTS", 2)
    best = BestConstants.of(TRAIN, RulesLabeler())  # the first and the fourth one
    assert (best.num_reports, best.total) == (2, 5)
    results = evaluate_systems({"model": TRAIN}, TRAIN, RulesLabeler(), num_resamples=5, best=best)
    assert "on 2 training reports (of 5, evenly spaced)." in " ".join(format_table(results).split())
    with pytest.raises(ValueError, match=r"the MCCS margin 0.3, but got 0.5"):
        evaluate_systems({"model": TRAIN}, TRAIN, RulesLabeler(), 0.3, best=best)


@pytest.fixture(scope="module")
def iu():
    """Results of two constant reports on the test split, and the best constants of the training split."""
    if not ANNOTATION.is_file():
        pytest.skip("needs the IU X-Ray data, which is not part of the project")
    splits = {name: [row["report"] for row in rows] for name, rows in json.loads(ANNOTATION.read_text()).items()}
    labeler = RulesLabeler(convention="plain")
    target = splits["test"]
    systems = {"constant normal": [CONSTANT_NORMAL] * 590, "sentence": [SENTENCE] * 590}
    best = BestConstants.of(splits["train"], labeler)
    return evaluate_systems(systems, target, labeler, num_resamples=100, best=best)


def test_constant_normal_is_not_the_best_constant(iu):
    def value(system, score="MCCS"):
        return round(100 * iu["systems"][system]["scores"][score]["value"], 1)

    assert (value("constant normal"), value("sentence")) == (26.5, 45.0)
    best = iu["best_constant"]
    assert round(100 * best["scores"]["MCCS"]["value"], 1) == 45.0
    assert round(100 * best["scores"]["CE-F1 micro-13+"]["value"], 1) == 19.7
    assert best["rows"]["CE-F1 micro-13+"] == [0, 0, 1, *[0] * 11]  # Lung Opacity
    assert best["num_reports"] == 2069
    gap = next(gap for gap in best["differences"] if gap["score"] == "MCCS")
    assert (gap["a"], gap["value"], gap["low"], gap["high"]) == ("sentence", 0, 0, 0)


def test_the_table_says_what_a_constant_is_worth(iu):
    lines = format_table(json.loads(json.dumps(iu))).splitlines()
    assert max(map(len, lines)) <= 112
    rows = {line[:15].strip(): line.split() for line in lines}
    assert rows["best constant"][2] == "45.0"
    assert rows["best constant"][-4:] == ["0.0", "[0.0,0.0]", "-", "-"]  # informedness
    assert "sentence - best constant, MCCS: +0.0 [+0.0, +0.0]" in lines
    assert " ".join(lines[-5:-3]) == (
        "sentence does not beat the best constant report in MCCS, CE-F1 micro-13+, CE-F1 macro-13+ (95 % "
        "intervals of the difference)."
    )
    assert lines[-3:] == [
        "sentence does not show that its findings depend on the image: informedness is not above 0.",
        "sentence finds nothing: none of its reports states one of the 13 conditions.",
        "sentence writes 1 of 590 distinct reports, fewer than 1 %.",
    ]


def test_an_average_that_has_no_best_row():
    with pytest.raises(ValueError, match="`average` to be micro, macro, weighted or example, but got 'none'"):
        best_row(torch.zeros(1, 14, dtype=torch.long), "none", FIVE, "positive")


def test_how_a_best_constant_is_named():
    def named(*stated):
        row = [int(name in stated) for name in CONDITIONS]
        return BestConstants(1, 1, "rules", 0.5, {"MCCS": row, "F1": row}, {"MCCS": "Clear."})

    assert named("Edema").describe("MCCS") == '"Clear."'
    assert named().describe("F1") == "nothing"
    assert named("Edema", "Fracture").describe("F1") == "Edema + Fracture"
    assert named(*CONDITIONS[:13]).describe("F1") == "all 13 conditions"
    assert named(*CONDITIONS).describe("F1") == "all 14 conditions"
    assert named(*CONDITIONS[:12]).describe("F1") == " + ".join(CONDITIONS[:12])


def test_evenly_spaced_reports():
    numbers = list(range(20_001))
    assert evenly_spaced(numbers[:10_000]) == numbers[:10_000]
    assert evenly_spaced(numbers[:10_001]) == numbers[:10_001:2]
    assert evenly_spaced(numbers) == numbers[::3]
    assert evenly_spaced([]) == []
