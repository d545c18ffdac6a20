import pytest
import torch

from mrg.metrics import CEF1, CONDITIONS, CONVENTIONS, FAMILIES, ce_f1, convention
from tests.metrics.test_ce import PREDS, TARGET


def test_names_say_what_they_are():
    assert len(CONVENTIONS) == 24
    for name, setting in CONVENTIONS.items():
        average, size = name.rstrip("+").split("-")
        assert setting["average"] == average
        assert len(setting["conditions"]) == int(size)
        assert ("No Finding" in setting["conditions"]) == (size == "14")
        assert setting["uncertain"] == ("positive" if name.endswith("+") else "negative")
    assert all(set(members) <= set(CONVENTIONS) for members in FAMILIES.values())


def test_a_name_gives_the_arguments():
    assert convention("micro-14+") == {"average": "micro", "conditions": CONDITIONS, "uncertain": "positive"}
    assert convention("miura") == convention("micro-5+")
    assert convention("example") == convention("example-14")
    assert float(ce_f1(PREDS, TARGET, **convention("macro-5+"))) == pytest.approx(0.6)
    metric = CEF1(**convention("example"))
    metric.update(PREDS, TARGET)
    assert float(metric.compute()) == pytest.approx(0.5)
    assert convention("Micro-F1-14+") == convention("micro-14+")  # as LLaVA-Rad writes it
    convention("micro-5")["average"] = "macro"
    assert CONVENTIONS["micro-5"]["average"] == "micro"


def test_bad_names():
    with pytest.raises(ValueError, match=r"but got 'micro-15'; known are micro-13\+"):
        convention("micro-15")
    with pytest.raises(ValueError, match="'r2gen' stands for several: choose from micro-14, macro-14"):
        convention("r2gen")


def test_all_conventions_of_one_collection_share_their_counts():
    from torchmetrics import MetricCollection

    collection = MetricCollection({name: CEF1(**setting) for name, setting in CONVENTIONS.items()})
    for part in (slice(0, 1), slice(1, 4)):
        collection.update(PREDS[part], TARGET[part])
    got = collection.compute()
    for name, setting in CONVENTIONS.items():
        torch.testing.assert_close(got[name], ce_f1(PREDS, TARGET, **setting), rtol=0, atol=1e-15)
    # One group for the 18 that follow from the confusion, one each for the 6 averages over reports.
    assert sorted(len(group) for group in collection.compute_groups.values()) == [1] * 6 + [18]
