"""Scores as functions of per-report numbers, so that every one of them has an interval and paired differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Corpus = Callable[[np.ndarray, int], np.ndarray]
"""Function from sums (T, K) over T samples of N reports, and N, to the score of each sample (T,)."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One score of a table.

    Args:
        name: Name of the score.
        convention: Description of how it is computed.
        corpus: Function from sums to the score.
        percent: Whether it is a fraction, shown in percent.
        higher_is_better: Whether a larger value is a better report.
    """

    name: str
    convention: str
    corpus: Corpus
    percent: bool = True
    higher_is_better: bool = True


@dataclasses.dataclass
class Group:
    """Scores that are computed together.

    Args:
        name: Name in `--scores`.
        rows: The scores.
        values: Function from N reports and N references to (N, K) numbers; nan where a report has none.
        settings: What the values depend on besides the texts; empty if they are not to be kept.
        block: Number of pairs per call of `values`; 0 for all, because the values depend on the other pairs.
        best: Function from training reports and N references to the best constant of each score: name -> (N, K)
            numbers of the reports that all state it.
        reasons: (report, reference) -> reason why it has no value, filled by `values`.
        usage: Numbers to add to the results, such as the tokens of a judge.
    """

    name: str
    rows: Sequence[Row]
    values: Callable[[Sequence[str], Sequence[str]], Any]
    settings: Mapping[str, Any]
    block: int = 0
    best: Callable[[Sequence[str], Sequence[str]], Mapping[str, np.ndarray]] | None = None
    reasons: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    usage: Mapping[str, int] = dataclasses.field(default_factory=dict)


def mean(column: int = 0) -> Corpus:
    """Mean over the reports of one column."""
    return lambda sums, num: sums[:, column] / num


def micro_f1(first: int = 0) -> Corpus:
    """F1 of the sums of true positives, false positives and false negatives, columns from `first` on; 0/0 = 0."""

    def corpus(sums: np.ndarray, num: int) -> np.ndarray:
        tp, fp, fn = sums[:, first : first + 3].T
        score: np.ndarray = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
        return score

    return corpus


class Sums:
    """Numbers of the reports of one system, for `mrg.metrics.resampling.bootstrap`.

    Args:
        values: (N, K).
        rows: Scores.
    """

    def __init__(self, values: np.ndarray, rows: Sequence[Row]) -> None:
        self.parts, self.rows = [values], rows

    def scores(self, sums: np.ndarray, resampled: bool = False) -> dict[str, np.ndarray]:
        """Score -> (T,) values of (T, K) sums."""
        return {row.name: row.corpus(sums, len(self.parts[0])) for row in self.rows}

    def corpus(self) -> dict[str, float]:
        """Scores of all reports, without resampling."""
        return {name: float(value[0]) for name, value in self.scores(self.parts[0].sum(0)[None]).items()}
