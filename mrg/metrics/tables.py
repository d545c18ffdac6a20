"""CE-F1 in every convention and the scores of each condition as a table, and informedness.

Informedness is recall + specificity - 1 of a condition (Youden, 1950). It is 0 for every report that does not depend on
the study: CE-F1 rewards a constant report for stating the most common finding, informedness does not. 1 is perfect,
below 0 is worse than a constant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mrg.metrics.ce import average_score, ce_f1, condition_counts, confusion
from mrg.metrics.conditions import (
    CONDITIONS,
    CONVENTIONS,
    FAMILIES,
    NUM_CONDITIONS,
    POSITIVE,
    SCORES,
    condition_indices,
    convention,
    outcomes,
)
from mrg.metrics.labels import Labeler, Reports, as_labels, require_reports


def condition_scores(table: Tensor) -> dict[str, dict[str, float]]:
    """Scores of each condition, with uncertain counted as positive.

    Args:
        table: (14, 4, 4) counts of `confusion`.

    Returns:
        Condition -> `f1`, `precision`, `recall` and `informedness` (nan for 0/0), `support` and `predicted` (numbers of
        reports).
    """
    counts = condition_counts(table, "positive")
    columns = {score: average_score(counts, "none", score, "nan").tolist() for score in SCORES}
    columns["informedness"] = _informedness(counts, int(table[0].sum())).tolist()
    columns |= {"support": (counts[0] + counts[2]).tolist(), "predicted": (counts[0] + counts[1]).tolist()}
    return {name: {key: values[i] for key, values in columns.items()} for i, name in enumerate(CONDITIONS)}


@dataclasses.dataclass(frozen=True)
class CETable:
    """CE in many conventions, as fractions; `print` shows percent.

    Args:
        num_reports: N.
        scores: Convention -> `precision`, `recall`, `f1`, and `normal`: the F1 of a report whose only label is No
            Finding, on the same references.
        conditions: Condition -> `precision`, `recall`, `f1`, and `support`: the number of references with the
            condition. Uncertain counts as positive.
    """

    num_reports: int
    scores: dict[str, dict[str, float]]
    conditions: dict[str, dict[str, float]]

    def __str__(self) -> str:
        """The printed table, at most 100 columns wide."""
        lines = [
            f"CE of {self.num_reports:,} reports, in percent. A convention is named by its average and conditions:",
            "14, 13 (without No Finding) or 5; + counts uncertain as positive, otherwise it is negative; 0/0 = 0.",
            "normal: F1 of a constant normal report, a baseline.",
        ]
        rows = {
            name: [percent(row[key]) for key in ("precision", "recall", "f1", "normal")]
            for name, row in self.scores.items()
        }
        return "\n".join([*lines, "", *format_ce(["precision", "recall", "F1", "normal"], rows, self.conditions)])


def ce_table(
    preds: Reports, target: Reports, labeler: Labeler | None = None, conventions: Sequence[str] | str | None = None
) -> CETable:
    """Compute CE in many conventions.

    Args:
        preds: N generated reports: (N, 14) label classes, or strings with a `labeler`.
        target: N reference reports in either form.
        labeler: Labeler for strings.
        conventions: Name or names from `CONVENTIONS` and `FAMILIES`; all of `CONVENTIONS` by default.

    Raises:
        UserError: If a name is unknown, a value is not a label class, lengths differ, or there is no report.
        UserTypeError: If a report is neither a row of labels nor a string.

    Example:
        >>> target = torch.tensor([[0, 1, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0]])
        >>> ce_table(target, target, conventions="r2gen").scores["micro-14"]["f1"]
        1.0
    """
    names = [conventions] if isinstance(conventions, str) else list(CONVENTIONS if conventions is None else conventions)
    members = dict.fromkeys(member for name in names for member in FAMILIES.get(name, (name,)))
    settings = {name: convention(name) for name in members}
    p, t = as_labels(preds, target, labeler)
    require_reports(p)
    normal = torch.zeros(1, NUM_CONDITIONS, dtype=torch.int64, device=p.device)
    normal[0, CONDITIONS.index("No Finding")] = POSITIVE
    scores = {}
    for name, setting in settings.items():
        scores[name] = {score: float(ce_f1(p, t, **setting, score=score)) for score in SCORES}
        scores[name]["normal"] = float(ce_f1(normal.expand_as(t), t, **setting))
    rows = condition_scores(confusion(p, t))
    return CETable(len(p), scores, {c: {k: row[k] for k in (*SCORES, "support")} for c, row in rows.items()})


def format_ce(
    head: list[str], rows: Mapping[str, list[str]], conditions: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Lines of the CE table: a row for each convention with the papers that report it, then one for each condition."""
    users = {name: ", ".join(family for family, members in FAMILIES.items() if name in members) for name in rows}
    lines = columns([["convention", *head], *([name, *row] for name, row in rows.items())])
    lines = [f"{line}   {by}".rstrip() for line, by in zip(lines, ["reported by", *users.values()], strict=True)]
    counts = [key for key in ("support", "predicted") if key in next(iter(conditions.values()))]
    informed = ["informedness"] if "informedness" in next(iter(conditions.values())) else []
    table = [["condition (+)", "precision", "recall", "F1", *informed, *counts]]
    for name, row in conditions.items():
        support, predicted = row["support"], row.get("predicted", 1)
        shares = (("precision", predicted), ("recall", support), ("f1", support + predicted))
        cells = [percent(row[score]) if defined and row[score] == row[score] else "-" for score, defined in shares]
        cells += ["-" if row[key] is None else percent(row[key]) for key in informed]
        table.append([name, *cells, *(f"{row[key]:,.0f}" for key in counts)])
    return [*lines, "", *columns(table)]


def columns(rows: Sequence[Sequence[str]], gap: int = 2) -> list[str]:
    """Rows of cells with the first column aligned left and the others aligned right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        row[0].ljust(first) + "".join(cell.rjust(gap + width) for cell, width in zip(row[1:], widths, strict=True))
        for row in rows
    ]


def percent(value: float) -> str:
    """A fraction in percent, with one decimal."""
    return f"{100 * value:.1f}"


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
        labeler: Labeler for strings.

    Returns:
        (C,) float64 in [-1, 1]; nan if no reference has the condition, or all have it.

    Raises:
        UserError: If an argument or a label has another value, lengths differ, or there is no report.

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
    return _informedness(condition_counts(confusion(p, t), uncertain)[:, columns], len(p))


def _informedness(counts: Tensor, num_reports: int) -> Tensor:
    """Informedness (C,) from (3, C) counts of true positives, false positives and false negatives."""
    tp, fp, fn = counts.double()
    negative = num_reports - tp - fn
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
        min_cases: Minimum number of references with a condition; with fewer, recall is a matter of luck.
        conditions: Number or names of the conditions.
        uncertain: Treatment of uncertain findings, as in `informedness`.
        labeler: Labeler for strings.
    """
    p, t = as_labels(preds, target, labeler)
    values = informedness(p, t, conditions, uncertain)
    positive = outcomes(uncertain).to(t.device)[2, :, 0].bool()  # classes that a silent report misses
    cases = positive[t][:, condition_indices(conditions)].sum(0)
    return float(values[(cases >= min_cases) & ~values.isnan()].mean())
