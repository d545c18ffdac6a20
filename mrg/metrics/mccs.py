"""Margin CheXbert cosine similarity, MCCS (Wang, Ye, Naseem, Kim, MRG-R1, arXiv 2512.16145, 2025).

Each report is a vector over the 13 conditions without No Finding: +1 for a positive finding, -1 for a negative one, 0
if it is not mentioned. `ccs` is the cosine of two such vectors, and MCCS rescales the part above a margin to [0, 1].
Three choices are not published and are arguments here: the margin, the value of an uncertain finding, and the cosine of
two reports that mention none of the conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.conditions import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN, condition_indices
from mrg.metrics.labels import (
    Labeler,
    Reports,
    as_labels,
    check_labeler,
    has_text,
    identity,
    require_reports,
    texts_or_labels,
)
from mrg.metrics.metric import ReportMetric

EMPTY = ("match", "zero", "nan")


def ccs(
    preds: Reports,
    target: Reports,
    uncertain: float = 1.0,
    empty: str = "match",
    conditions: int | Sequence[str] = 13,
    labeler: Labeler | None = None,
) -> Tensor:
    """Cosine similarity of signed label vectors.

    The dot product and both squared norms are exact in float64, and so is the cosine of a vector with itself: 1.

    Args:
        preds: N generated reports: (N, 14) label classes, or strings with a `labeler`.
        target: N reference reports in either form.
        uncertain: Value of an uncertain finding, in [-1, 1]: 1 counts it as positive (the default), 0 as not mentioned.
        empty: Cosine of two zero vectors: 1 (`"match"`), 0 (`"zero"`) or nan (`"nan"`); that of one zero vector is 0.
        conditions: 13 (without No Finding), 14, 5, or names from `CONDITIONS`.
        labeler: Labeler for strings. A prediction without text scores 0.

    Returns:
        (N,) float64 in [-1, 1].

    Raises:
        UserError: If an argument or a label has another value, or lengths differ.
        UserTypeError: If a report is neither a row of labels nor a string.

    Example:
        >>> target = torch.tensor([[0, 1, 0, 0, 2, 2, 2, 0, 2, 0, 0, 0, 0, 0]])  # cardiomegaly, four denials
        >>> preds = torch.tensor([[0, 2, 0, 0, 2, 2, 2, 0, 2, 0, 0, 0, 0, 0]])  # denies it too: (4 - 1) / 5
        >>> ccs(preds, target)
        tensor([0.6000], dtype=torch.float64)
    """
    columns = _check(0.0, uncertain, empty, conditions)
    reports: Tensor | list[str] = texts_or_labels(preds, "preds")
    p, t = as_labels(reports, target, labeler)
    a, b = _signed(p[:, columns], uncertain), _signed(t[:, columns], uncertain)
    dot, norms = (a * b).sum(1), (a * a).sum(1) * (b * b).sum(1)
    cosine = torch.where(norms > 0, dot / norms.clamp(min=1e-300).sqrt(), 0.0)
    both = (a == 0).all(1) & (b == 0).all(1)
    cosine = torch.where(both, {"match": 1.0, "zero": 0.0, "nan": float("nan")}[empty], cosine)
    with_text = has_text(reports)
    return cosine if with_text is None else torch.where(with_text.to(cosine.device), cosine, 0.0)


def mccs(
    preds: Reports,
    target: Reports,
    margin: float = 0.5,
    uncertain: float = 1.0,
    empty: str = "match",
    reduction: str = "mean",
    conditions: int | Sequence[str] = 13,
    labeler: Labeler | None = None,
) -> Tensor:
    """MCCS, `max((ccs - margin) / (1 - margin), 0)`.

    Normal bias: a report that misses p findings as negative and matches k negatives has the cosine (k - p) / (k + p),
    .71 for one finding and six negatives, so that a normal report scores despite a missed finding. Show CE-F1 as well.

    Args:
        preds: N generated reports, see `ccs`.
        target: N reference reports, see `ccs`.
        margin: Margin in [0, 1); the paper's is not published, the default is ours.
        uncertain: Value of an uncertain finding, see `ccs`.
        empty: Cosine of two zero vectors, see `ccs`.
        reduction: `"mean"` over the reports whose value is not nan, or `"none"` for one value per report.
        conditions: Conditions to compare, see `ccs`.
        labeler: Labeler for strings, see `ccs`.

    Returns:
        float64 in [0, 1]: a scalar, or (N,) for `reduction="none"`.

    Raises:
        UserError: As `ccs`, or if there is no report to average.
        UserTypeError: As `ccs`.
    """
    _check(margin, uncertain, empty, conditions)
    if reduction not in ("mean", "none"):
        raise UserError(f"Expected argument `reduction` to be 'mean' or 'none', but got {reduction!r}.")
    score = (ccs(preds, target, uncertain, empty, conditions, labeler) - margin) / (1 - margin)
    score = score.clamp(min=0)
    if reduction == "none":
        return score
    require_reports(score)
    return score.nanmean()


def _check(margin: float, uncertain: float, empty: str, conditions: int | Sequence[str]) -> list[int]:
    """Check all arguments; returns the columns of the conditions."""
    for name, value in (("margin", margin), ("uncertain", uncertain)):
        if not isinstance(value, (int, float)):
            raise UserError(f"Expected argument `{name}` to be a number, but got {value!r}.")
    if not 0 <= margin < 1:
        raise UserError(f"Expected argument `margin` to be in [0, 1), but got {margin}.")
    if not -1 <= uncertain <= 1:
        raise UserError(f"Expected argument `uncertain` to be in [-1, 1], but got {uncertain}.")
    if empty not in EMPTY:
        raise UserError(f"Expected argument `empty` to be 'match', 'zero' or 'nan', but got {empty!r}.")
    return condition_indices(conditions)


def _signed(labels: Tensor, uncertain: float) -> Tensor:
    signed = (labels == POSITIVE).double() - (labels == NEGATIVE).double()
    return signed + uncertain * (labels == UNCERTAIN).double()


class MCCS(ReportMetric):
    """Corpus mean of `mccs` over a stream of batches and over processes; its arguments are those of `mccs`."""

    higher_is_better = True
    is_differentiable = False
    labeler: Labeler | None
    settings: Tensor
    total: Tensor
    num: Tensor

    def __init__(
        self,
        margin: float = 0.5,
        uncertain: float = 1.0,
        empty: str = "match",
        conditions: int | Sequence[str] = 13,
        labeler: Labeler | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.columns = _check(margin, uncertain, empty, conditions)
        check_labeler(labeler)
        self.conditions = tuple(CONDITIONS[column] for column in self.columns)
        self.margin, self.uncertain, self.empty = margin, uncertain, empty
        # Not a submodule: its weights stay out of checkpoints, and train() does not reach its dropout.
        object.__setattr__(self, "labeler", labeler)
        # A collection updates metrics together if their states are equal after a batch: other settings, other states.
        settings = [*identity(labeler), margin, uncertain, EMPTY.index(empty), *self.columns]
        self.add_state("settings", torch.tensor(settings, dtype=torch.float64), dist_reduce_fx="max")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def extra_repr(self) -> str:
        """Settings, for `repr`."""
        return f"margin={self.margin}, uncertain={self.uncertain}, empty={self.empty!r}, conditions={len(self.columns)}"

    def update(self, preds: Reports, target: Reports) -> None:
        """Add N reports; N may be 0."""
        scores = self.scores(preds, target).to(self.total.device)
        scores = scores[~scores.isnan()]
        self.total += scores.sum()
        self.num += len(scores)

    def compute(self) -> Tensor:
        """Mean over the reports whose value is not nan, float64."""
        return self.total / self.num

    def scores(self, preds: Reports, target: Reports) -> Tensor:
        """Score each report without changing the metric's state.

        Args:
            preds: N generated reports: (N, 14) label classes, or strings if the metric has a labeler.
            target: N reference reports in either form.

        Returns:
            (N,) float64 in [0, 1]; an empty string scores 0.
        """
        return mccs(preds, target, self.margin, self.uncertain, self.empty, "none", self.conditions, self.labeler)
