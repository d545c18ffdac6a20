"""Clinical efficacy (CE): precision, recall and F1 of findings, in every convention in use.

"CE-F1" is not one number. Papers differ in the conditions (14, 13 without No Finding, or 5), the treatment of uncertain
findings, the average, and the value of 0/0. Each is an argument here, and `conventions.py` names the combinations in
use. All but the average over reports follow from one table of counts: condition by reference class by predicted class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mrg.errors import MissingPackageError, UserError
from mrg.metrics.conditions import (
    AVERAGES,
    CONDITIONS,
    NUM_CONDITIONS,
    SCORES,
    UNCERTAIN_OPTIONS,
    condition_indices,
    outcomes,
)
from mrg.metrics.labels import Labeler, Reports, as_labels, check_labeler, identity, require_reports
from mrg.metrics.metric import ReportMetric

ZERO_DIVISION = (0, 1, "nan", "skip")
_ROWS = 16_384


def confusion(preds: Tensor, target: Tensor) -> Tensor:
    """Count pairs of classes: (14, 4, 4) int64, condition by class in the reference by class in the prediction.

    Args:
        preds: (N, 14) label classes.
        target: (N, 14) label classes.
    """
    classes = torch.arange(4, device=preds.device)
    table = torch.zeros(NUM_CONDITIONS, 4, 4, dtype=torch.int64, device=preds.device)
    for p, t in _blocks(preds, target):
        table += ((t.unsqueeze(-1) == classes).unsqueeze(-1) & (p.unsqueeze(-1) == classes).unsqueeze(-2)).sum(0)
    return table


def _blocks(preds: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both sides in blocks: hundreds of bytes per report are held for one block only."""
    yield from zip(preds.split(_ROWS), target.split(_ROWS), strict=True)


def report_counts(preds: Tensor, target: Tensor, uncertain: str, dtype: torch.dtype = torch.int64) -> Tensor:
    """True positives, false positives and false negatives of each report and condition: (3, N, 14) integers."""
    return outcomes(uncertain).to(preds.device, dtype)[:, target.long(), preds.long()]


def condition_counts(table: Tensor, uncertain: str) -> Tensor:
    """True positives, false positives and false negatives of each condition, from `confusion`: (3, 14) int64."""
    return (table * outcomes(uncertain).to(table.device).unsqueeze(1)).sum((-2, -1))


def ratio(counts: Tensor, score: str = "f1", zero_division: int | str = 0) -> Tensor:
    """Precision `tp / (tp + fp)`, recall `tp / (tp + fn)` or F1 `2 tp / (2 tp + fp + fn)`, float64.

    Args:
        counts: (3, …) true positives, false positives, false negatives.
        score: `"f1"`, `"precision"` or `"recall"`.
        zero_division: Value of 0/0; nan for both `"nan"` and `"skip"`.
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
    """CE-F1 of a set of reports, or its precision or recall.

    Args:
        preds: N generated reports: (N, 14) label classes, or strings with a `labeler`.
        target: N reference reports in either form.
        average: `"micro"`: over all reports and conditions; `"macro"`: mean over conditions; `"weighted"`: mean over
            conditions weighted by support; `"example"`: mean over reports; `"none"`: one value per condition.
        conditions: 13 (without No Finding), 14, 5 (the CheXpert competition's), or names from `CONDITIONS`.
        uncertain: Treatment of uncertain findings: `"positive"`, `"negative"`, `"own"` (a class of its own) or
            `"ignore"` (findings that are uncertain in the reference do not count); see `conventions.outcomes`.
        score: `"f1"`, `"precision"` or `"recall"`.
        zero_division: Value of 0/0: 0 (as in all published scripts), 1, `"nan"` (the average is nan too) or `"skip"`
            (left out of averages).
        labeler: Labeler for strings.

    Returns:
        float64 scalar, or (C,) for `average="none"`. `**convention("micro-14+")` gives a named convention's arguments.

    Raises:
        UserError: If an argument or a label has another value, lengths differ, or there is no report.
        UserTypeError: If a report is neither a row of labels nor a string.

    Example:
        >>> target = torch.tensor([[0, 1, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0]])
        >>> preds = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0]])
        >>> ce_f1(preds, target, uncertain="positive")  # correct: cardiomegaly, edema; missed: effusion
        tensor(0.8000, dtype=torch.float64)
    """
    columns = _check(average, conditions, uncertain, score, zero_division)
    p, t = as_labels(preds, target, labeler)
    require_reports(p)
    if average == "example":
        scores = report_scores(p, t, columns, uncertain, score, zero_division)
        return scores.nanmean() if zero_division == "skip" else scores.mean()
    counts = condition_counts(confusion(p, t), uncertain)[:, columns]
    return average_score(counts, average, score, zero_division)


class CEF1(ReportMetric):
    """`ce_f1` over a stream of batches and over processes; its arguments are those of `ce_f1`.

    The state is one table of counts (14, 4, 4), so that all conventions in a `MetricCollection` cost as much as one:
    torchmetrics updates equal states once. Only the average over reports has additional sums.

    Example:
        >>> metric = CEF1(average="macro", conditions=5)
        >>> target = torch.tensor([[0, 1, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0]])
        >>> metric.update(target, target)
        >>> metric.compute()  # two of the five do not occur: 0/0 = 0
        tensor(0.6000, dtype=torch.float64)
    """

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
        # Not a submodule: its weights stay out of checkpoints, and train() does not reach its dropout.
        object.__setattr__(self, "labeler", labeler)
        # A collection updates metrics together if their states are equal after a batch. Counts serve all conventions
        # of one labeler; sums over reports serve their own settings only.
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
        """Settings, for `repr`."""
        return (
            f"average={self.average!r}, conditions={len(self.columns)}, uncertain={self.uncertain!r}, "
            f"score={self.score!r}, zero_division={self.zero_division!r}"
        )

    def update(self, preds: Reports, target: Reports) -> None:
        """Add N reports; N may be 0."""
        p, t = (x.to(self.confusion.device) for x in as_labels(preds, target, self.labeler))
        self.confusion += confusion(p, t)
        if self.average == "example":
            scores = self._report_scores(p, t)
            if self.zero_division == "skip":
                scores = scores[~scores.isnan()]
            self.total += scores.sum()
            self.num += len(scores)

    def compute(self) -> Tensor:
        """CE-F1, float64: a scalar, or (C,) for `average="none"`."""
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
            UserError: If `average` is not `"example"`: the other averages have no score per report.

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
        """Draw the score and the support of each condition, the first one at the top; needs matplotlib.

        Args:
            val: (C,) values to draw instead of this metric's own.
            ax: Matplotlib axes; new ones by default.

        Returns:
            The figure and its axes.

        Raises:
            MissingPackageError: If matplotlib is not installed.
            UserError: If `val` does not hold C values.
        """
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            raise MissingPackageError("Plots need matplotlib: pip install matplotlib") from error
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            counts = condition_counts(self.confusion, self.uncertain)[:, self.columns]
        num = len(self.columns)
        values = torch.as_tensor(average_score(counts, "none", self.score, "nan") if val is None else val)
        if values.shape != (num,):
            got = len(values) if values.ndim else "one number"
            raise UserError(f"Expected argument `val` to hold {num} values, but got {got}.")
        figure, axes = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(6.4, 0.8 + 0.3 * num))
        axes.barh(range(num), values.nan_to_num().tolist(), height=0.65, color="#3b6ea5")
        for position, value in enumerate(values.tolist()):
            text, color = ("undefined", "gray") if value != value else (f"{100 * value:.1f}", "black")
            axes.text(0.01 + (value if value == value else 0), position, text, va="center", fontsize=8, color=color)
        support = (counts[0] + counts[2]).tolist()
        axes.set_yticks(range(num), [f"{name} ({n})" for name, n in zip(self.conditions, support, strict=True)])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.08)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axes.set_xlabel(f"{self.score.capitalize()} in percent (in brackets: support)")
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        return figure, axes

    def _report_scores(self, preds: Tensor, target: Tensor) -> Tensor:
        return report_scores(preds, target, self.columns, self.uncertain, self.score, self.zero_division)


def report_scores(
    preds: Tensor, target: Tensor, columns: list[int], uncertain: str, score: str, zero_division: int | str
) -> Tensor:
    """`ce_f1` of each report: (N,) float64."""
    counts = [report_counts(*block, uncertain)[:, :, columns].sum(2) for block in _blocks(preds, target)]
    return ratio(torch.cat(counts, 1), score, zero_division)


def _check(
    average: str, conditions: int | Sequence[str], uncertain: str, score: str, zero_division: int | str
) -> list[int]:
    """Check all arguments; returns the columns of the conditions."""
    allowed = {"average": (average, AVERAGES), "score": (score, SCORES), "uncertain": (uncertain, UNCERTAIN_OPTIONS)}
    for name, (value, options) in (*allowed.items(), ("zero_division", (zero_division, ZERO_DIVISION))):
        if value not in options:
            listed = ", ".join(map(repr, options[:-1])) + f" or {options[-1]!r}"
            raise UserError(f"Expected argument `{name}` to be {listed}, but got {value!r}.")
    return condition_indices(conditions)
