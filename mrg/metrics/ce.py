"""Clinical efficacy (CE): precision, recall and F1 of findings, in every convention in use.

"CE-F1" is not one number. Papers differ in the conditions they count (14, 13 without No Finding, or 5), in what an
uncertain finding counts as, in the average, and in what 0/0 is: each is an argument here, and `conventions.py` names
the combinations in use. All of them but the average over reports follow from one table of counts, condition by
reference class by predicted class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mrg.errors import UserError
from mrg.metrics.conditions import CONDITIONS, NUM_CONDITIONS
from mrg.metrics.conventions import AVERAGES, SCORES, UNCERTAIN_OPTIONS, condition_indices, outcomes
from mrg.metrics.labels import Labeler, Reports, as_labels, check_labeler, identity, require_reports

ZERO_DIVISION = (0, 1, "nan", "skip")


def confusion(preds: Tensor, target: Tensor) -> Tensor:
    """Count pairs of classes: (14, 4, 4) int64, condition by class in the reference by class in the prediction.

    Args:
        preds: (N, 14) label classes.
        target: (N, 14) label classes.
    """
    classes = torch.arange(4, device=preds.device)
    pairs = (target.unsqueeze(-1) == classes).unsqueeze(-1) & (preds.unsqueeze(-1) == classes).unsqueeze(-2)
    return pairs.sum(0)


def report_counts(preds: Tensor, target: Tensor, uncertain: str) -> Tensor:
    """True positives, false positives and false negatives of each report and condition: (3, N, 14) int64."""
    return outcomes(uncertain).to(preds.device)[:, target, preds]


def condition_counts(table: Tensor, uncertain: str) -> Tensor:
    """True positives, false positives and false negatives of each condition, from `confusion`: (3, 14) int64."""
    return (table * outcomes(uncertain).to(table.device).unsqueeze(1)).sum((-2, -1))


def ratio(counts: Tensor, score: str = "f1", zero_division: int | str = 0) -> Tensor:
    """Precision `tp / (tp + fp)`, recall `tp / (tp + fn)` or F1 `2 tp / (2 tp + fp + fn)`, float64.

    Args:
        counts: (3, …) true positives, false positives, false negatives.
        score: `"f1"`, `"precision"` or `"recall"`.
        zero_division: What 0/0 gives; nan for both `"nan"` and `"skip"`.
    """
    tp, fp, fn = counts
    numerator, denominator = {
        "f1": (2 * tp, 2 * tp + fp + fn),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
    }[score]
    undefined = float(zero_division) if zero_division in (0, 1) else float("nan")
    value = numerator.double() / denominator.clamp(min=1)
    return torch.where(denominator > 0, value, undefined)


def average_score(counts: Tensor, average: str, score: str, zero_division: int | str) -> Tensor:
    """Average the conditions of (3, C) counts: a scalar, or (C,) for `"none"`."""
    if average == "micro":
        return ratio(counts.sum(1), score, zero_division)
    values = ratio(counts, score, zero_division)
    if average == "none":
        return values
    weights = (counts[0] + counts[2]).double() if average == "weighted" else torch.ones_like(values)
    if zero_division == "skip":
        values, weights = values[~values.isnan()], weights[~values.isnan()]
    if not weights.sum() > 0:
        return ratio(torch.zeros(3, dtype=torch.int64, device=counts.device), score, zero_division)
    return (values * weights).sum() / weights.sum()


def ce_f1(
    preds: Reports,
    target: Reports,
    average: str = "micro",
    conditions: int | Sequence[str] = 13,
    uncertain: str = "positive",
    *,
    score: str = "f1",
    zero_division: int | str = 0,
    labeler: Labeler | None = None,
) -> Tensor:
    """CE-F1, or the precision or recall behind it, of a set of reports.

    Args:
        preds: N generated reports: (N, 14) label classes, or strings with a `labeler`.
        target: N reference reports in either form.
        average: `"micro"`: over all cells; `"macro"`: mean over conditions; `"weighted"`: the same weighted by support;
            `"example"`: mean over reports; `"none"`: one value per condition.
        conditions: 13 (without No Finding), 14, 5 (the CheXpert competition's), or names from `CONDITIONS`.
        uncertain: Whether an uncertain finding counts as `"positive"` or `"negative"`, as a class of its `"own"`, or
            makes `"ignore"` where the reference has it; see `conventions.outcomes`.
        score: `"f1"`, `"precision"` or `"recall"`.
        zero_division: What 0/0 counts as: 0 (as all published scripts), 1, `"nan"` (the average is nan too) or
            `"skip"` (left out of averages).
        labeler: Labels strings.

    Returns:
        float64 scalar, or (C,) for `average="none"`. `**convention("micro-14+")` gives a named convention's arguments.

    Raises:
        ValueError: If an argument or a label is not one of the above, lengths differ, or there is no report.
        TypeError: If a report is neither a label row nor a string.

    Example:
        >>> target = torch.tensor([[0, 1, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0]])
        >>> preds = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0]])
        >>> ce_f1(preds, target, uncertain="positive")  # right: cardiomegaly, edema; missed: effusion
        tensor(0.8000, dtype=torch.float64)
    """
    columns = _check(average, conditions, uncertain, score, zero_division)
    p, t = as_labels(preds, target, labeler)
    require_reports(p)
    if average == "example":
        scores = _report_scores(p, t, columns, uncertain, score, zero_division)
        return scores.nanmean() if zero_division == "skip" else scores.mean()
    counts = condition_counts(confusion(p, t), uncertain)[:, columns]
    return average_score(counts, average, score, zero_division)


class CEF1(Metric):
    """`ce_f1` over a stream of batches and over processes; its arguments are those of `ce_f1`.

    The state is one table of counts (14, 4, 4), so that many conventions in a `MetricCollection` cost one: torchmetrics
    updates equal states once. Only the average over reports needs sums of its own.

    Example:
        >>> metric = CEF1(average="macro", conditions=5)
        >>> target = torch.tensor([[0, 1, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0]])
        >>> metric.update(target, target)
        >>> metric.compute()  # two of the five are nowhere: 0/0 counts as 0
        tensor(0.6000, dtype=torch.float64)
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    labeler: Labeler | None
    confusion: Tensor
    settings: Tensor
    total: Tensor
    num: Tensor

    def __init__(
        self,
        average: str = "micro",
        conditions: int | Sequence[str] = 13,
        uncertain: str = "positive",
        *,
        score: str = "f1",
        zero_division: int | str = 0,
        labeler: Labeler | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.columns = _check(average, conditions, uncertain, score, zero_division)
        check_labeler(labeler)
        self.conditions = tuple(CONDITIONS[column] for column in self.columns)
        self.average, self.uncertain = average, uncertain
        self.score, self.zero_division = score, zero_division
        # Not a submodule: its weights must not leak into checkpoints, nor train() reach its dropout.
        object.__setattr__(self, "labeler", labeler)
        # A collection updates metrics together whose states are equal after a batch. Counts serve all conventions of
        # one labeler; sums over reports serve their own settings only.
        settings = identity(labeler)
        if average == "example":
            options = (UNCERTAIN_OPTIONS.index(uncertain), SCORES.index(score), ZERO_DIVISION.index(zero_division))
            settings += [*options, *self.columns]
            self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("num", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("settings", torch.tensor(settings), dist_reduce_fx="max")
        table = torch.zeros(NUM_CONDITIONS, 4, 4, dtype=torch.int64)
        self.add_state("confusion", table, dist_reduce_fx="sum")

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"average={self.average!r}, conditions={len(self.columns)}, uncertain={self.uncertain!r}, "
            f"score={self.score!r}, zero_division={self.zero_division!r}"
        )

    def update(self, preds: Reports, target: Reports) -> None:
        """Add reports, which may be none."""
        p, t = (x.to(self.confusion.device) for x in as_labels(preds, target, self.labeler))
        self.confusion += confusion(p, t)
        if self.average == "example":
            scores = self._report_scores(p, t)
            if self.zero_division == "skip":
                scores = scores[~scores.isnan()]
            self.total += scores.sum()
            self.num += len(scores)

    def compute(self) -> Tensor:
        """The score, float64: a scalar, or (C,) for `average="none"`."""
        if self.average == "example":
            return self.total / self.num
        counts = condition_counts(self.confusion, self.uncertain)[:, self.columns]
        return average_score(counts, self.average, self.score, self.zero_division)

    def scores(self, preds: Reports, target: Reports) -> Tensor:
        """Score each report without changing the metric's state.

        Args:
            preds: N generated reports: (N, 14) label classes, or strings if the metric has a labeler.
            target: N reference reports in either form.

        Returns:
            (N,) float64. With `zero_division=1`, a report that correctly states no finding scores 1.

        Raises:
            ValueError: If `average` is not `"example"`: the other averages have no score per report.

        Example:
            >>> target = torch.tensor([[0, 1, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0], [2] * 14])
            >>> preds = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0], [0] * 14])
            >>> CEF1(average="example", zero_division=1).scores(preds, target)
            tensor([0.8000, 1.0000], dtype=torch.float64)
        """
        if self.average != "example":
            raise UserError(f"Expected `average` to be 'example' for scores per report, but it is {self.average!r}.")
        return self._report_scores(*as_labels(preds, target, self.labeler))

    def plot(self, val: Tensor | None = None, ax: Any = None) -> Any:
        """Draw the score of each condition with its support; needs `pip install matplotlib`.

        Args:
            val: (C,) values to draw in place of this metric's own.
            ax: Axes of matplotlib to draw into.

        Returns:
            The figure and its axes.
        """
        from mrg.metrics.plot import plot_conditions

        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            counts = condition_counts(self.confusion, self.uncertain)[:, self.columns]
        values = average_score(counts, "none", self.score, "nan") if val is None else val
        return plot_conditions(values, counts[0] + counts[2], self.conditions, self.score, ax)

    def _report_scores(self, preds: Tensor, target: Tensor) -> Tensor:
        return _report_scores(preds, target, self.columns, self.uncertain, self.score, self.zero_division)


def _report_scores(
    preds: Tensor, target: Tensor, columns: list[int], uncertain: str, score: str, zero_division: int | str
) -> Tensor:
    return ratio(report_counts(preds, target, uncertain)[:, :, columns].sum(2), score, zero_division)


def _check(
    average: str, conditions: int | Sequence[str], uncertain: str, score: str, zero_division: int | str
) -> list[int]:
    """The columns of the chosen conditions, after all arguments have been checked."""
    allowed = {"average": (average, AVERAGES), "score": (score, SCORES), "uncertain": (uncertain, UNCERTAIN_OPTIONS)}
    for name, (value, options) in (*allowed.items(), ("zero_division", (zero_division, ZERO_DIVISION))):
        if value not in options:
            listed = ", ".join(map(repr, options[:-1])) + f" or {options[-1]!r}"
            raise UserError(f"Expected argument `{name}` to be {listed}, but got {value!r}.")
    return condition_indices(conditions)
