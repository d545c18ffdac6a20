"""What may be passed as reports, and what is said of the rest."""

import copy
import pickle

import numpy as np
import pytest
import torch

from mrg.errors import UserError
from mrg.metrics import CEF1, MCCS, RulesLabeler, ce_f1, ce_table, mccs
from mrg.metrics.labels import CachingLabeler, as_labels, has_text, label_together, run_labeler
from tests.metrics.test_ce import PREDS, TARGET


class CountingLabeler(RulesLabeler):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        return super().__call__(texts)


def test_both_sides_are_labelled_in_one_call():
    labeler = CountingLabeler()
    preds, target = as_labels(["Edema.", "No edema."], ("Edema.", "Cardiomegaly."), labeler)
    assert labeler.calls == [["Edema.", "No edema.", "Edema.", "Cardiomegaly."]]
    assert preds[:, 4].tolist() == [1, 2]
    assert target[:, [1, 4]].tolist() == [[0, 1], [1, 0]]
    as_labels(preds, ["Edema.", "No edema."], labeler)
    assert labeler.calls[1:] == [["Edema.", "No edema."]]
    for empty in as_labels([], [], labeler):
        assert empty.shape == (0, 14)


def test_forms():
    small = as_labels(PREDS.to(torch.int8), np.array(TARGET))
    assert torch.equal(small[0], PREDS)
    assert torch.equal(small[1], TARGET)
    assert small[0].dtype == small[1].dtype == torch.int64
    generator = as_labels((t for t in ["Edema."]), ["Edema."], RulesLabeler())
    assert torch.equal(*generator)
    assert has_text(PREDS) is None
    assert has_text(["a", "\n", ""]).tolist() == [True, False, False]


BAD = [
    (PREDS, TARGET[:3], ValueError, "same length, but got 4 and 3"),
    (["Edema."], [], ValueError, "same length, but got 1 and 0"),
    (PREDS[:, :13], TARGET, ValueError, r"`preds` to be of shape \(N, 14\), but got \(4, 13\)"),
    (PREDS[0], TARGET[0], ValueError, r"`preds` to be of shape \(N, 14\), but got \(14,\)"),
    (PREDS, TARGET.double(), ValueError, "`target` to hold integers, but got torch.float64"),
    (PREDS > 0, TARGET, ValueError, "`preds` to hold integers, but got torch.bool"),
    (PREDS + 1, TARGET, ValueError, r"`preds` to hold label classes 0\.\.3, but got 1\.\.4"),
    (PREDS, TARGET - 1, ValueError, r"`target` to hold label classes 0\.\.3, but got -1\.\.2"),
    (None, TARGET, TypeError, r"`preds` to be a label tensor \(N, 14\) or a list of strings, but got None"),
    (PREDS, 3, TypeError, r"`target` to be a label tensor \(N, 14\) or a list of strings, but got 3"),
    (["Edema.", None], ["Edema.", ""], TypeError, r"`preds\[1\]` to be a string, but got NoneType"),
    (["Edema."], [float("nan")], TypeError, r"`target\[0\]` to be a string, but got float"),
    ("Edema.", ["Edema."], TypeError, "`preds` to be a sequence of reports, but got one string"),
]


@pytest.mark.parametrize(("preds", "target", "kind", "message"), BAD)
def test_bad_reports(preds, target, kind, message):
    labeler = RulesLabeler()
    for call in (
        lambda: CEF1(labeler=labeler).update(preds, target),
        lambda: MCCS(labeler=labeler).update(preds, target),
        lambda: ce_f1(preds, target, labeler=labeler),
        lambda: mccs(preds, target, labeler=labeler),
        lambda: ce_table(preds, target, labeler),
    ):
        with pytest.raises(kind, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_no_reports_and_no_labeler():
    for call in (lambda: ce_f1([], [], labeler=RulesLabeler()), lambda: mccs(PREDS[:0], TARGET[:0])):
        with pytest.raises(ValueError, match="at least one report in `preds` and `target`, but got none"):
            call()
    with pytest.raises(ValueError, match="`labeler` to be given where `target` holds strings"):
        mccs(PREDS[:1], ["Edema."])
    with pytest.raises(ValueError, match=r"labeler to return \(2, 14\) labels, but got \(2, 13\)"):
        mccs(["a"], ["b"], labeler=lambda texts: torch.zeros(len(texts), 13, dtype=torch.long))


def test_arrays_and_generators_are_lists():
    """Also for the rule that nothing written is worth nothing."""
    preds, target, labeler = ["", "Chest."], ["Chest.", "Chest."], RulesLabeler()
    for form in (list, tuple, np.array, lambda x: np.array(x, dtype=object), iter):
        got = mccs(form(preds), form(target), reduction="none", labeler=labeler)
        assert got.tolist() == [0, 1]
        metric = MCCS(labeler=labeler)
        metric.update(form(preds), form(target))
        assert float(metric.compute()) == 0.5
    assert torch.equal(labeler(iter(preds)), labeler(preds))
    reversed_labels = np.array(PREDS)[::-1].astype(np.uint16)
    assert torch.equal(as_labels(reversed_labels, reversed_labels)[0], PREDS.flip(0))


@pytest.mark.parametrize(
    ("labeler", "message"), [("rules", "such as RulesLabeler"), (RulesLabeler, r"write RulesLabeler\(\)")]
)
def test_what_is_no_labeler(labeler, message):
    for call in (
        lambda: CEF1(labeler=labeler),
        lambda: MCCS(labeler=labeler),
        lambda: ce_f1(["a"], ["b"], labeler=labeler),
        lambda: mccs(["a"], ["b"], labeler=labeler),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_settings_show():
    assert "average='macro', conditions=5" in repr(CEF1("macro", 5))
    assert "margin=0.3" in repr(MCCS(0.3))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"to return a tensor \(1, 14\), but got None"),
        ([[0] * 14], r"to return a tensor \(1, 14\), but got builtins\.list"),
        (np.array([["a"] * 14]), r"to return a tensor \(1, 14\), but got numpy\.ndarray"),
        (np.zeros((1, 13), dtype=np.int64), r"to return \(1, 14\) labels, but got \(1, 13\)"),
        (np.full((1, 14), 7), r"to hold label classes 0\.\.3, but got 7\.\.7"),
        (torch.zeros(1, 14), r"to hold integers, but got torch\.float32"),
        (torch.zeros(14, dtype=torch.int64), r"to return \(1, 14\) labels, but got \(14,\)"),
    ],
)
def test_what_a_labeler_must_not_return(returned, message):
    """Everywhere the same: in metrics, in rewards and where labels are cached."""
    calls = [
        lambda labeler: CEF1(labeler=labeler).update(["a"], torch.zeros(1, 14, dtype=torch.int64)),
        lambda labeler: label_together(labeler, ["a"]),
        lambda labeler: CachingLabeler(labeler)(["a"]),
        lambda labeler: run_labeler(labeler, ["a"]),
    ]
    for call in calls:
        with pytest.raises(UserError, match=message) as error:
            call(lambda texts: returned)
        assert "\n" not in str(error.value)


def test_a_labeler_may_return_an_array():
    labels = RulesLabeler()(["Small effusion.", "Clear."])
    given = {kind: CachingLabeler(lambda texts, kind=kind: labels.numpy().astype(kind)) for kind in ("int64", "uint8")}
    for labeler in given.values():
        assert labeler(["a", "b"]).tolist() == labels.tolist()
    assert float(ce_f1(["a", "b"], ["a", "b"], labeler=lambda texts: np.concatenate([labels.numpy()] * 2))) == 1.0


def test_many_reports_are_labeled_in_blocks_with_progress(monkeypatch, caplog):
    monkeypatch.setattr("mrg.metrics.labels._AT_ONCE", 2)
    calls = []

    def labeler(texts):
        calls.append(list(texts))
        return torch.tensor([[len(text)] + [0] * 13 for text in texts])

    with caplog.at_level("INFO", logger="mrg"):
        first, second = label_together(labeler, ["a", "bb", "a"], ["", "ccc"])
    assert calls == [["a", "bb"], ["", "ccc"]]
    assert (first[:, 0].tolist(), second[:, 0].tolist()) == ([1, 2, 1], [0, 3])
    assert [record.message for record in caplog.records] == [
        "Labeled 2 of 4 distinct reports.",
        "Labeled 4 of 4 distinct reports.",
    ]
    label_together(labeler, ["a", "bb"])
    assert len(caplog.records) == 2


def test_a_caching_labeler_is_its_labeler_and_can_be_copied():
    labeler = CachingLabeler(RulesLabeler(), {"Edema.": torch.full((14,), 3)})
    assert labeler.name == "rules"
    assert labeler(["Edema."]).tolist() == [[3] * 14]
    assert labeler(["Edema."]).dtype == torch.int64
    assert labeler([]).shape == (0, 14)
    assert [one.condition for one in labeler.evidence("Edema.")] == ["Edema"]
    for copied in (copy.deepcopy(labeler), pickle.loads(pickle.dumps(labeler))):
        assert copied(["Edema.", "No edema."])[:, 4].tolist() == [3, 2]
    assert CachingLabeler(lambda texts: torch.zeros(len(texts), 14, dtype=torch.int64)).name == "function"
    with pytest.raises(AttributeError):
        labeler.no_such_attribute  # noqa: B018
