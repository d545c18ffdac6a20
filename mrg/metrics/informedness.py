"""Informedness: recall + specificity - 1 of each condition (Youden, 1950).

0 for every report that does not depend on the study, whatever it states: where CE-F1 pays a constant report for stating
the most common finding, informedness shows that nothing was seen. 1 is perfect, below 0 is worse than a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mrg.metrics.conventions import condition_indices, outcomes
from mrg.metrics.labels import Labeler, Reports, as_labels, require_reports


def informedness(
    preds: Reports,
    target: Reports,
    conditions: int | Sequence[str] = 13,
    uncertain: str = "positive",
    labeler: Labeler | None = None,
) -> Tensor:
    """Informedness of each condition.

    Args:
        preds: N generated reports: (N, 14) label classes, or strings with a `labeler`.
        target: N reference reports in either form.
        conditions: 13 (without No Finding), 14, 5, or names from `CONDITIONS`.
        uncertain: Whether an uncertain finding counts as `"positive"` or `"negative"`.
        labeler: Labels strings.

    Returns:
        (C,) float64 in [-1, 1]; nan where no reference has the condition, or all have.

    Raises:
        ValueError: If an argument or a label is not one of the above, lengths differ, or there is no report.

    Example:
        >>> target = torch.tensor([[0, 1], [0, 1], [0, 2], [0, 0]]).repeat(1, 7)
        >>> preds = torch.tensor([[0, 1], [0, 2], [0, 0], [0, 1]]).repeat(1, 7)
        >>> informedness(preds, target, ["Cardiomegaly"])  # recall 1/2, specificity 1/2
        tensor([0.], dtype=torch.float64)
    """
    if uncertain not in ("positive", "negative"):
        raise ValueError(f"Expected argument `uncertain` to be 'positive' or 'negative', but got {uncertain!r}.")
    columns = condition_indices(conditions)
    p, t = as_labels(preds, target, labeler)
    require_reports(p)
    tp, fp, fn = outcomes(uncertain).to(p.device)[:, t[:, columns], p[:, columns]].sum(1).double()
    negative = len(p) - tp - fn
    value: Tensor = tp / (tp + fn) + (negative - fp) / negative - 1
    return value


def macro_informedness(
    preds: Reports,
    target: Reports,
    min_cases: int = 10,
    conditions: int | Sequence[str] = 13,
    uncertain: str = "positive",
    labeler: Labeler | None = None,
) -> float:
    """Mean informedness of the conditions with enough cases; nan without any.

    Args:
        preds: (N, 14) label classes, or N reports with `labeler`.
        target: Labels or reports of the references, in the same order.
        min_cases: Fewest references with a condition that counts; of fewer, recall is a matter of luck.
        conditions: Number or names of the conditions.
        uncertain: What an uncertain finding counts as.
        labeler: Labels reports; only needed for texts.
    """
    p, t = as_labels(preds, target, labeler)
    values = informedness(p, t, conditions, uncertain)
    positive = outcomes(uncertain).to(t.device)[2, :, 0].bool()  # classes that a silent report misses
    cases = positive[t][:, condition_indices(conditions)].sum(0)
    return float(values[(cases >= min_cases) & ~values.isnan()].mean())
