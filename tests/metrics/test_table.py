import math

import pytest
import torch

from mrg.metrics import CONVENTIONS, RulesLabeler, ce_f1, ce_table
from tests.metrics.test_ce import PREDS, TARGET


def test_every_convention_beside_a_constant_normal_report():
    table = ce_table(PREDS, TARGET)
    assert list(table.scores) == list(CONVENTIONS)
    normal = torch.zeros_like(TARGET)
    normal[:, 13] = 1
    for name, setting in CONVENTIONS.items():
        row = table.scores[name]
        for score in ("precision", "recall", "f1"):
            assert row[score] == float(ce_f1(PREDS, TARGET, **setting, score=score))
        assert row["normal"] == float(ce_f1(normal, TARGET, **setting))
    # No Finding is right in one of four reports, and is the only finding written: precision 1/4, recall 1/6 and 1/8.
    assert table.scores["micro-14"]["normal"] == pytest.approx(2 / (4 + 5))
    assert table.scores["example-14"]["normal"] == 0.25
    assert table.scores["micro-13+"]["normal"] == 0


def test_conditions():
    row = ce_table(PREDS, TARGET).conditions["Pleural Effusion"]
    assert row == {"f1": 0, "precision": 0, "recall": 0, "support": 1}
    row = ce_table(PREDS, TARGET).conditions["Fracture"]
    assert row["support"] == 0
    assert math.isnan(row["f1"])


def test_print():
    text = str(ce_table(PREDS, TARGET))
    assert max(map(len, text.splitlines())) <= 100
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["micro-14"] == ["micro-14", "50.0", "60.0", "54.5", "22.2", "r2gen,", "llava-rad"]
    assert lines["Fracture"] == ["Fracture", "-", "-", "-", "0"]
    assert lines["Consolidation"] == ["Consolidation", "100.0", "100.0", "100.0", "1"]


def test_chosen_conventions_and_strings():
    assert list(ce_table(PREDS, TARGET, conventions="r2gen").scores) == ["micro-14", "macro-14"]
    names = ["miura", "micro-5+", "example"]
    assert list(ce_table(PREDS, TARGET, conventions=names).scores) == ["micro-5+", "example-14"]
    table = ce_table(["Edema."], ["Edema."], RulesLabeler(), "micro-13+")
    assert table.num_reports == 1
    assert table.scores["micro-13+"]["f1"] == 1
    with pytest.raises(ValueError, match="but got 'chexpert'"):
        ce_table(PREDS, TARGET, conventions="chexpert")
