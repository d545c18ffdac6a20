import pytest
import torch

from mrg.errors import UserError
from mrg.metrics.conditions import (
    BLANK,
    CLASSES,
    CONDITIONS,
    CONVENTIONS,
    FAMILIES,
    FIVE,
    NEGATIVE,
    POSITIVE,
    THIRTEEN,
    UNCERTAIN,
    outcomes,
    stated,
)


def test_a_positive_and_an_uncertain_finding_are_stated():
    labels = torch.tensor([[BLANK, POSITIVE], [NEGATIVE, UNCERTAIN]])
    assert stated(labels).tolist() == [[False, True], [False, True]]


def test_an_unknown_treatment_of_uncertain_findings():
    with pytest.raises(UserError, match="`uncertain` to be 'positive', 'negative', 'own' or 'ignore', but got 'both'"):
        outcomes("both")


def test_names_and_classes():
    assert (len(CONDITIONS), CONDITIONS[0], CONDITIONS[-1]) == (14, "Enlarged Cardiomediastinum", "No Finding")
    assert CONDITIONS[:13] == THIRTEEN
    assert [CONDITIONS.index(name) for name in FIVE] == [1, 4, 5, 7, 9]
    assert CLASSES == ("blank", "positive", "negative", "uncertain")
    assert (BLANK, POSITIVE, NEGATIVE, UNCERTAIN) == (0, 1, 2, 3)
    assert FAMILIES["r2gen"] == ("micro-14", "macro-14")
    assert FAMILIES["f1chexbert"] == (
        "micro-14+", "macro-14+", "weighted-14+", "example-14+", "micro-5+", "macro-5+", "weighted-5+", "example-5+",
    )  # fmt: skip
    assert FAMILIES["llava-rad"] == (
        "micro-14", "micro-14+", "macro-14", "macro-14+", "micro-5", "micro-5+", "macro-5", "macro-5+",
    )  # fmt: skip
    assert list(FAMILIES) == ["r2gen", "example", "f1chexbert", "miura", "llava-rad"]
    assert list(CONVENTIONS)[:9:4] == ["micro-13+", "micro-13", "micro-14+"]
