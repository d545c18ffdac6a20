"""The best constant report of each score: what is reached without looking at an image.

MCCS is highest for one of the training reports. For CE-F1 it is a row of labels: with k conditions stated, micro and
example F1 are sums over these conditions, so the k conditions with the largest terms are the best ones, and all k are
tried; macro and weighted F1 never fall by stating one more condition. Each row is therefore the exact optimum.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.conditions import CONDITIONS, CONVENTIONS, NUM_CONDITIONS, POSITIVE, condition_indices, outcomes
from mrg.metrics.imports import name_of
from mrg.metrics.labels import Labeler, label_together
from mrg.metrics.mccs import mccs

T = TypeVar("T")

BEST = "best constant"
MOST_REPORTS = 10_000
"""Largest number of training reports that are labelled; of more, every k-th one is taken."""


@dataclasses.dataclass(frozen=True)
class BestConstants:
    """Best constant of each score on training reports.

    Args:
        num_reports: Number of training reports that were labelled.
        total: Number of training reports.
        labeler: Name of the labeler.
        margin: Margin of MCCS.
        rows: Score -> 14 label classes.
        reports: Score -> text, for MCCS, whose best constant is a training report.
    """

    num_reports: int
    total: int
    labeler: str
    margin: float
    rows: dict[str, list[int]]
    reports: dict[str, str]

    @classmethod
    def of(cls, reports: Sequence[str], labeler: Labeler, margin: float = 0.5) -> BestConstants | None:
        """Find the best constants; None if no report has text.

        Args:
            reports: Training reports. Of more than `MOST_REPORTS`, evenly spaced ones are taken.
            labeler: Labeler, or any callable of its form; called once.
            margin: Margin of MCCS.
        """
        texts = [text for text in evenly_spaced(reports) if text.strip()]
        if not texts:
            return None
        labels = label_together(labeler, texts)[0].cpu()
        best = best_report(texts, labels, margin)
        rows = {"MCCS": labels[best].tolist()}
        for name, setting in CONVENTIONS.items():
            rows[f"CE-F1 {name}"] = best_row(labels, **setting)
        return cls(len(texts), len(reports), name_of(labeler), margin, rows, {"MCCS": texts[best]})

    @classmethod
    def read(cls, saved: Mapping[str, Any] | None) -> BestConstants | None:
        """Best constants from `best_constant` in a results.json; None if it has none."""
        return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls)}) if saved else None

    def describe(self, score: str) -> str:
        """The constant of a score: its text, or the conditions that its label row states."""
        stated = [name for name, value in zip(CONDITIONS, self.rows[score], strict=True) if value == POSITIVE]
        if score in self.reports:
            return f'"{self.reports[score]}"'
        return f"all {len(stated)} conditions" if len(stated) >= 13 else " + ".join(stated) or "nothing"


def evenly_spaced(items: Sequence[T]) -> Sequence[T]:
    """All items, or every k-th one of more than `MOST_REPORTS`."""
    return items[:: max(1, -(-len(items) // MOST_REPORTS))]


def best_report(reports: Sequence[str], labels: Tensor, margin: float) -> int:
    """Index of the report with the highest mean MCCS; ties: the most frequent, then the first by alphabet."""
    rows, place, counts = torch.unique(labels[:, :13], dim=0, return_inverse=True, return_counts=True)
    rows = torch.cat([rows, rows.new_zeros(len(rows), 1)], 1)
    means = []
    for row in rows:
        means.append(float(mccs(row.expand_as(rows), rows, margin, reduction="none") @ counts.double()))
    highest = max(means)
    frequency = Counter(reports)
    chosen = [i for i, k in enumerate(place.tolist()) if means[k] >= highest - 1e-9 * len(reports)]
    return min(chosen, key=lambda i: (-frequency[reports[i]], reports[i]))


def best_row(target: Tensor, average: str, conditions: Iterable[str], uncertain: str) -> list[int]:
    """The row of labels with the highest CE-F1 if every report states it.

    Args:
        target: (N, 14) label classes of the references.
        average: `"micro"`, `"macro"`, `"weighted"` or `"example"`.
        conditions: Conditions of the score.
        uncertain: Whether an uncertain finding counts as `"positive"` or `"negative"`.

    Returns:
        14 label classes: positive where the row states a condition, otherwise blank.

    Raises:
        UserError: If the average is none of these.
    """
    if average not in ("micro", "macro", "weighted", "example"):
        raise UserError(f"Expected argument `average` to be micro, macro, weighted or example, but got {average!r}.")
    columns = condition_indices(tuple(conditions))
    has = outcomes(uncertain)[2, :, 0].bool()[target][:, columns].double()  # classes that a silent report misses
    counts, sizes = has.sum(0), has.sum(1, keepdim=True)
    if average in ("macro", "weighted"):
        chosen = (counts > 0).nonzero().ravel().tolist()
    else:
        best, chosen = 0.0, []
        for k in range(1, len(columns) + 1):
            if average == "micro":
                terms = 2 * counts / (k * len(target) + counts.sum())
            else:
                terms = (2 * has / (k + sizes)).mean(0)
            order = terms.argsort(descending=True, stable=True)[:k].tolist()
            if float(terms[order].sum()) > best + 1e-12:
                best, chosen = float(terms[order].sum()), order
    row = [0] * NUM_CONDITIONS
    for index in chosen:
        row[columns[index]] = POSITIVE
    return row
