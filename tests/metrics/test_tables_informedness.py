import math

import pytest
import torch

from mrg.metrics import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN, RulesLabeler
from mrg.metrics.tables import informedness, macro_informedness

EDEMA, FRACTURE = CONDITIONS.index("Edema"), CONDITIONS.index("Fracture")


def labels(column, *classes):
    result = torch.zeros(len(classes), 14, dtype=torch.long)
    result[:, column] = torch.tensor(classes)
    return result


def test_by_hand():
    target = labels(EDEMA, POSITIVE, UNCERTAIN, NEGATIVE, 0, 0)
    preds = labels(EDEMA, UNCERTAIN, NEGATIVE, POSITIVE, 0, 0)
    assert informedness(preds, target, ["Edema"]).tolist() == pytest.approx([1 / 2 + 2 / 3 - 1])
    assert informedness(preds, target, ["Edema"], "negative").tolist() == pytest.approx([0 + 3 / 4 - 1])
    assert informedness(target, target, ["Edema"]).tolist() == [1]


def test_a_constant_report_is_not_informed():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (50, 14), generator=generator)
    for value in range(4):
        assert informedness(torch.full_like(target, value), target).abs().max() < 1e-12


def test_the_macro_form_leaves_out_what_has_few_cases():
    target = labels(EDEMA, POSITIVE, POSITIVE, 0, 0)
    target[0, FRACTURE] = POSITIVE
    preds = labels(EDEMA, POSITIVE, 0, 0, 0)
    assert macro_informedness(preds, target, min_cases=2) == pytest.approx(0.5)
    assert macro_informedness(preds, target, min_cases=1) == pytest.approx((0.5 + 0) / 2)
    assert math.isnan(macro_informedness(preds, target, min_cases=3))


def test_undefined_without_cases_and_texts():
    values = informedness(["Edema."], ["Cardiomegaly."], ["Edema", "Cardiomegaly"], labeler=RulesLabeler())
    assert values.isnan().all()  # the only reference has none, or all have
    with pytest.raises(ValueError, match="'positive' or 'negative', but got 'own'"):
        informedness(labels(EDEMA, 1), labels(EDEMA, 1), uncertain="own")
