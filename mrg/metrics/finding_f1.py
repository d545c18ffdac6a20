"""F1 of findings with their attributes: a finding on the wrong side does not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mrg.errors import UserError, UserTypeError
from mrg.metrics.conditions import NEGATIVE, THIRTEEN
from mrg.metrics.labelers.attributes import ATTRIBUTES, Finding
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import check_pairs
from mrg.metrics.metric import ReportMetric

Attributes = dict[str, frozenset[str]]
AVERAGES = ("micro", "example")


class FindingsReader(Protocol):
    """A labeler that reads findings with attributes, such as `RulesLabeler`."""

    def findings(self, text: str) -> list[Finding]:
        """The findings of one report."""


def report_findings(reader: FindingsReader, text: str) -> tuple[dict[str, Attributes], set[tuple[str, str]]]:
    """Statements of one report about each of the 13 conditions.

    Args:
        reader: Reads the findings.
        text: A report.

    Returns:
        For each stated condition its attributes, attribute -> values of all its mentions (left and right make
        bilateral); and the pairs of condition and change, findings that have resolved among them.
    """
    stated: dict[str, Attributes] = {}
    changes: set[tuple[str, str]] = set()
    for finding in reader.findings(text):
        if finding.condition not in THIRTEEN:
            continue
        if finding.change is not None:
            changes.add((finding.condition, finding.change))
        if finding.label == NEGATIVE:
            continue
        own = stated.setdefault(finding.condition, dict.fromkeys(ATTRIBUTES, frozenset()))
        for kind in ATTRIBUTES:
            value = getattr(finding, kind)
            own[kind] |= frozenset(() if value is None else (value,))
    for own in stated.values():
        if len(own["side"]) > 1:
            own["side"] = frozenset(("bilateral",))
    return stated, changes


class _PairMetric(ReportMetric):
    """Counts per pair of reports, summed over batches and processes."""

    higher_is_better = True
    is_differentiable = False
    counts: Tensor
    total: Tensor
    num: Tensor

    def __init__(self, labeler: FindingsReader | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        labeler = RulesLabeler() if labeler is None else labeler
        if not callable(getattr(labeler, "findings", None)):
            raise UserTypeError(
                f"Expected argument `labeler` to read findings (`findings(text)`, as RulesLabeler does), but got "
                f"{type(labeler).__name__}."
            )
        object.__setattr__(self, "labeler", labeler)
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Add reports, which may be none."""
        counts = self.pair_counts(preds, target)
        self.counts += counts.sum(0).to(self.counts.device)
        self.total += _f1(counts).sum().to(self.total.device)
        self.num += len(counts)

    def scores(self, preds: Sequence[str], target: Sequence[str]) -> Tensor:
        """F1 of each report (N,), for rewards: 1 if neither report has a finding; the state is not changed."""
        return _f1(self.pair_counts(preds, target))

    def pair_counts(self, preds: Sequence[str], target: Sequence[str]) -> Tensor:
        """Compute true positives, false positives and false negatives of each report: (N, 3) int64."""
        check_pairs(preds, target)
        read = {text: report_findings(self._reader(), text) for text in dict.fromkeys((*preds, *target))}
        rows = [self._pair(read[pred], read[reference]) for pred, reference in zip(preds, target, strict=True)]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)

    def _reader(self) -> FindingsReader:
        reader: FindingsReader = self.labeler  # type: ignore[assignment]
        return reader

    def _pair(self, pred: Any, reference: Any) -> tuple[int, int, int]:
        raise NotImplementedError


class FindingF1(_PairMetric):
    """F1 over 13 conditions in which a finding counts only with the right attributes.

    A finding is correct if both reports state the condition (uncertain counts as stated) and every attribute that the
    reference gives is the same in the prediction; otherwise it is both hallucinated and missed.

    Args:
        attributes: Names of `mrg.metrics.labelers.attributes.ATTRIBUTES`: `"side"`, `"place"`, `"severity"`,
            `"change"`; with none it is CE-F1 micro-13+ (or example-13+ with `zero_division=1`).
        labeler: Reads the findings; `RulesLabeler()` by default.
        average: `"micro"`, over all findings, or `"example"`, the mean over reports: 1 for two without findings.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        UserError: If an attribute or the average is unknown.
        UserTypeError: If the labeler does not read findings.

    Example:
        >>> FindingF1()(["Left effusion. Cardiomegaly."], ["Right effusion. Cardiomegaly."])
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(
        self,
        attributes: Sequence[str] = ("side",),
        labeler: FindingsReader | None = None,
        average: str = "micro",
        **kwargs: Any,
    ) -> None:
        super().__init__(labeler, **kwargs)
        unknown = [attributes] if isinstance(attributes, str) else [a for a in attributes if a not in ATTRIBUTES]
        if unknown:
            raise UserError(
                f"Expected argument `attributes` to hold names from {', '.join(ATTRIBUTES)}, but got {unknown[0]!r}."
            )
        if average not in AVERAGES:
            raise UserError(f"Expected argument `average` to be 'micro' or 'example', but got {average!r}.")
        self.attributes, self.average = tuple(attributes), average

    def compute(self) -> Tensor:
        """The F1, float64; 0 if no report has a finding and the average is micro."""
        if self.average == "example":
            return self.total / self.num
        return _micro(self.counts)

    def _pair(self, pred: Any, reference: Any) -> tuple[int, int, int]:
        stated, expected = pred[0], reference[0]
        right = sum(
            all(not expected[name][kind] or expected[name][kind] == stated[name][kind] for kind in self.attributes)
            for name in stated.keys() & expected.keys()
        )
        return right, len(stated) - right, len(expected) - right


class ChangeF1(_PairMetric):
    """Micro F1 over pairs of condition and change: new, larger, smaller, unchanged, resolved.

    Args:
        labeler: Reads the findings; `RulesLabeler()` by default.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> ChangeF1()(["The effusion is larger."], ["The effusion is smaller."])
        tensor(0., dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """The F1, float64; 0 if no report mentions a change."""
        return _micro(self.counts)

    def _pair(self, pred: Any, reference: Any) -> tuple[int, int, int]:
        right = len(pred[1] & reference[1])
        return right, len(pred[1]) - right, len(reference[1]) - right


class AttributeAccuracy(_PairMetric):
    """Accuracy of one attribute among the findings that both reports state and whose attribute the reference gives.

    Args:
        attribute: A name of `mrg.metrics.labelers.attributes.ATTRIBUTES`.
        labeler: Reads the findings; `RulesLabeler()` by default.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        UserError: If the attribute is unknown.

    Example:
        >>> AttributeAccuracy()(["Left effusion. Cardiomegaly."], ["Left effusion. Rib fracture."])
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, attribute: str = "side", labeler: FindingsReader | None = None, **kwargs: Any) -> None:
        super().__init__(labeler, **kwargs)
        if attribute not in ATTRIBUTES:
            raise UserError(
                f"Expected argument `attribute` to be one of {', '.join(ATTRIBUTES)}, but got {attribute!r}."
            )
        self.attribute = attribute

    def compute(self) -> Tensor:
        """The accuracy, float64; nan if there is no shared finding with the attribute."""
        right, wrong = self.counts[0].double(), self.counts[1].double()
        return right / (right + wrong)

    def scores(self, preds: Sequence[str], target: Sequence[str]) -> Tensor:
        """Accuracy of each report (N,); nan if it shares no finding with the attribute, so that it is no reward."""
        right, wrong, _ = self.pair_counts(preds, target).double().T
        return right / (right + wrong)

    def _pair(self, pred: Any, reference: Any) -> tuple[int, int, int]:
        shared = [name for name in pred[0].keys() & reference[0].keys() if reference[0][name][self.attribute]]
        right = sum(pred[0][name][self.attribute] == reference[0][name][self.attribute] for name in shared)
        return right, len(shared) - right, 0


def _micro(counts: Tensor) -> Tensor:
    tp, fp, fn = counts.double().unbind()
    return 2 * tp / (2 * tp + fp + fn).clamp(min=1)


def _f1(counts: Tensor) -> Tensor:
    tp, fp, fn = counts.double().T
    total = 2 * tp + fp + fn
    return torch.where(total > 0, 2 * tp / total.clamp(min=1), 1.0)
