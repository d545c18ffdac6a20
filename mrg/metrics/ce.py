"""Clinical efficacy: precision, recall and F1 of findings, in every convention in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from mrg.metrics.conditions import CONDITIONS, FIVE, POSITIVE, THIRTEEN, UNCERTAIN
from mrg.metrics.labels import Labeler, as_labels

CONVENTIONS: dict[str, dict[str, Any]] = {
    "micro-13+": {"average": "micro", "conditions": THIRTEEN, "uncertain": "positive"},
    "macro-13+": {"average": "macro", "conditions": THIRTEEN, "uncertain": "positive"},
    "example-13+": {"average": "example", "conditions": THIRTEEN, "uncertain": "positive"},
    "micro-14": {"average": "micro", "conditions": CONDITIONS, "uncertain": "negative"},
    "macro-14": {"average": "macro", "conditions": CONDITIONS, "uncertain": "negative"},
    "example-14": {"average": "example", "conditions": CONDITIONS, "uncertain": "negative"},
    "micro-5+": {"average": "micro", "conditions": FIVE, "uncertain": "positive"},
    "micro-5": {"average": "micro", "conditions": FIVE, "uncertain": "negative"},
}
"""Names follow LLaVA-Rad: the plus sign means that uncertain counts as positive. 0/0 is 0 in all of them."""


class Counts(NamedTuple):
    """True positives, false positives and false negatives."""

    tp: Tensor
    fp: Tensor
    fn: Tensor


def positives(labels: Tensor, conditions: Sequence[str], uncertain: str) -> Tensor:
    """(N, len(conditions)) bool: which findings count as present."""
    if uncertain not in ("positive", "negative"):
        raise ValueError(f"Expected argument `uncertain` to be 'positive' or 'negative', but got {uncertain!r}.")
    unknown = [c for c in conditions if c not in CONDITIONS]
    if unknown:
        raise ValueError(f"Expected argument `conditions` to hold names from CONDITIONS, but got {unknown[0]!r}.")
    chosen = labels[:, [CONDITIONS.index(c) for c in conditions]]
    return (chosen == POSITIVE) | ((chosen == UNCERTAIN) if uncertain == "positive" else False)


def cell_counts(preds: Tensor, target: Tensor, conditions: Sequence[str], uncertain: str) -> Counts:
    """Counts per report and condition, each (N, len(conditions)) int64."""
    p, t = positives(preds, conditions, uncertain), positives(target, conditions, uncertain)
    return Counts((p & t).long(), (p & ~t).long(), (~p & t).long())


def f1(counts: Counts) -> Tensor:
    """`2 tp / (2 tp + fp + fn)` in float64; 0/0 is 0."""
    denominator = 2 * counts.tp + counts.fp + counts.fn
    return 2 * counts.tp.double() / denominator.clamp(min=1)


def ce_f1(
    preds: Tensor,
    target: Tensor,
    average: str = "micro",
    conditions: Sequence[str] = THIRTEEN,
    uncertain: str = "positive",
) -> Tensor:
    """CE-F1.

    Args:
        preds: (N, 14) label classes.
        target: (N, 14) label classes.
        average: `"micro"` over all cells, `"macro"` over conditions, `"weighted"` by support, `"example"` over reports,
            or `"none"` for one value per condition.
        conditions: Which conditions count.
        uncertain: Whether an uncertain finding counts as `"positive"` or `"negative"`.
    """
    counts = cell_counts(preds, target, conditions, uncertain)
    if average == "example":
        return f1(Counts(*(c.sum(1) for c in counts))).mean()
    per_condition = Counts(*(c.sum(0) for c in counts))
    return _average(per_condition, average)


def _average(counts: Counts, average: str) -> Tensor:
    if average == "micro":
        return f1(Counts(*(c.sum() for c in counts)))
    if average == "none":
        return f1(counts)
    if average == "macro":
        return f1(counts).mean()
    if average == "weighted":
        support = (counts.tp + counts.fn).double()
        return (f1(counts) * support).sum() / support.sum().clamp(min=1)
    raise ValueError(
        f"Expected argument `average` to be 'micro', 'macro', 'weighted', 'example' or 'none', but got {average!r}."
    )


class CEF1(Metric):
    """CE-F1 over a stream; takes label tensors, or lists of strings where a labeler is given. See `ce_f1`."""

    full_state_update = False
    higher_is_better = True
    labeler: Labeler | None
    counts: Tensor
    example: Tensor
    num: Tensor

    def __init__(
        self,
        average: str = "micro",
        conditions: Sequence[str] = THIRTEEN,
        uncertain: str = "positive",
        labeler: Labeler | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.average, self.conditions, self.uncertain = average, tuple(conditions), uncertain
        object.__setattr__(self, "labeler", labeler)  # not a submodule, see MCCS
        # Metrics of one collection share their state where it is equal after a batch; other settings are another state.
        settings = [float(c in self.conditions) for c in CONDITIONS] + [float(uncertain == "positive")]
        self.add_state("settings", torch.tensor(settings), dist_reduce_fx="max")
        self.add_state("counts", torch.zeros(3, len(self.conditions), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("example", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor | Sequence[str], target: Tensor | Sequence[str]) -> None:
        """Add reports."""
        p, t = as_labels(preds, target, self.labeler)
        counts = cell_counts(p, t, self.conditions, self.uncertain)
        self.counts += torch.stack([c.sum(0) for c in counts]).to(self.counts.device)
        self.example += f1(Counts(*(c.sum(1) for c in counts))).sum().to(self.example.device)
        self.num += len(p)

    def compute(self) -> Tensor:
        """The score, float64."""
        if self.average == "example":
            return self.example / self.num
        return _average(Counts(*self.counts), self.average)
