from itertools import combinations, product

import numpy as np
import pytest

from mrg.metrics import FindingF1, RulesLabeler
from mrg.metrics.finding_f1 import ChangeF1, report_findings
from mrg.metrics.scores.finding import _change_items, _finding_items, best_items, constant_counts, finding_group
from mrg.metrics.scores.group import Sums, micro_f1

TRAIN = [
    "Left pleural effusion. Cardiomegaly.",
    "Left pleural effusion.",
    "Right pleural effusion. Pulmonary edema.",
    "Pleural effusion is larger.",
    "The lungs are clear.",
    "Cardiomegaly. Effusion is larger. Edema has resolved.",
]
PREDS = ["Right pleural effusion.", "Left pleural effusion.", "", "Effusion is larger.", "Edema.", "Cardiomegaly."]


def test_the_rows_are_the_metrics():
    group = finding_group(RulesLabeler())
    scores = Sums(group.values(PREDS, TRAIN), group.rows).corpus()
    assert scores["FindingF1 side"] == pytest.approx(float(FindingF1()(PREDS, TRAIN)))
    both = FindingF1(("side", "place", "severity"))
    assert scores["FindingF1 side+place+severity"] == pytest.approx(float(both(PREDS, TRAIN)))
    assert scores["ChangeF1"] == pytest.approx(float(ChangeF1()(PREDS, TRAIN)))


@pytest.mark.parametrize("items", [_finding_items(("side",)), _finding_items(()), _change_items])
def test_the_best_constant_is_the_best_of_all(items):
    read = [report_findings(RulesLabeler(), text) for text in TRAIN]
    options = {}
    for report in read:
        for key, value in items(report).items():
            options.setdefault(key, set()).add(value)

    def score(constant):
        return float(micro_f1()(constant_counts(constant, read, items).sum(0)[None], len(read))[0])

    every = [
        dict(zip(keys, values, strict=True))
        for k in range(len(options) + 1)
        for keys in combinations(options, k)
        for values in product(*(options[key] for key in keys))
    ]
    best = best_items(read, items)
    assert best
    assert score(best) == pytest.approx(max(map(score, every)))


def test_without_findings_the_best_constant_states_nothing():
    assert best_items([report_findings(RulesLabeler(), "The lungs are clear.")], _finding_items(())) == {}
    group = finding_group(RulesLabeler())
    counts = group.best(["", "No edema."], TRAIN)["FindingF1 side"]
    assert counts[:, :3].sum(0).tolist() == [0, 0, 8]
    assert np.array_equal(counts[:, 3:], np.zeros((6, 6)))


def test_rules_read_what_another_labeler_does_not():
    class Other:
        name = "other"

        def __call__(self, texts):
            raise AssertionError

    assert "read by rules" in finding_group(Other()).rows[0].convention
    assert finding_group(Other()).settings["reader"] == "rules"


def test_counts_without_references_keep_their_columns():
    assert constant_counts({"Edema": ()}, [], _finding_items(())).shape == (0, 3)
