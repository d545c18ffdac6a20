"""Labels of the references: prevalence, differences between splits, and scores of baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from mrg.commands.data_check.statistics import SplitStatistics
from mrg.datamodules.study import Study
from mrg.metrics.conditions import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.constants import BestConstants, evenly_spaced
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems
from mrg.metrics.labels import Labeler

LEVEL = 0.95
LEAST_DIFFERENCE = 0.01
LEAST_RATIO = 1.5


def measure_prevalence(statistics: Mapping[str, SplitStatistics]) -> dict[str, Any]:
    """Count label classes over non-empty reports by split and condition; `share` is that of positive or uncertain."""
    return {
        split: {
            condition: {
                **{
                    name: int((part.labels[part.is_written, column] == label).sum())
                    for name, label in (("positive", POSITIVE), ("uncertain", UNCERTAIN), ("negative", NEGATIVE))
                },
                "share": float(shares[column]) if part.is_written.any() else None,
            }
            for column, condition in enumerate(CONDITIONS)
        }
        for split, part in statistics.items()
        for shares in [_found(part).mean(0) if part.is_written.any() else np.zeros(len(CONDITIONS))]
    }


def _found(part: SplitStatistics) -> np.ndarray:
    return np.isin(part.labels[part.is_written], (POSITIVE, UNCERTAIN))


def measure_shift(statistics: Mapping[str, SplitStatistics], source: str = "train") -> dict[str, Any]:
    """Compare the prevalence in `source` with that in each other split, with simultaneous confidence intervals.

    Intervals are Newcombe's (1998, method 10), from Wilson intervals with Bonferroni's correction for the number of
    comparisons. Studies of one patient are correlated, so effective sample sizes are used (Korn and Graubard, 1998):
    frequent patients do not cause a shift.

    Returns:
        `level`, `num_comparisons`, and `differences`: split -> condition -> `difference` of shares, `low`, `high`, and
        `is_shift`: the interval excludes 0, and the difference is at least `LEAST_DIFFERENCE` or the larger share at
        least `LEAST_RATIO` times the smaller one.
    """
    written = {split: part for split, part in statistics.items() if part.is_written.any()}
    others = [split for split in written if split != source]
    if source not in written or not others:
        return {"level": LEVEL, "num_comparisons": 0, "source": source, "differences": {}}
    num_comparisons = len(others) * len(CONDITIONS)
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / num_comparisons / 2)
    sizes = {split: _share_and_size(written[split]) for split in [source, *others]}
    return {
        "level": LEVEL,
        "num_comparisons": num_comparisons,
        "source": source,
        "differences": {
            split: {
                condition: _difference(sizes[source][:, i], sizes[split][:, i], z)
                for i, condition in enumerate(CONDITIONS)
            }
            for split in others
        },
    }


def _share_and_size(part: SplitStatistics) -> np.ndarray:
    """(2, 14): shares and their effective sample sizes."""
    found = _found(part)
    num, share = len(found), found.mean(0)
    patients = np.asarray(part.patients)[part.is_written]
    # A study without a patient counts as a patient of its own.
    alone = patients < 0
    groups = np.unique(np.where(alone, -1 - np.arange(num), patients), return_inverse=True)[1].ravel()
    num_groups = int(groups.max()) + 1
    sums = np.zeros((num_groups, len(CONDITIONS)))
    np.add.at(sums, groups, found - share)
    binomial = share * (1 - share) / num
    clustered = (sums**2).sum(0) / num**2
    effect = np.divide(clustered, binomial, out=np.ones_like(share), where=binomial > 0)
    return np.stack([share, num / np.maximum(effect, 1)])


def wilson_interval(share: float, num: float, z: float) -> tuple[float, float]:
    """Wilson's (1927) interval for a share of `num` studies, `z` standard deviations to each side."""
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * (share * (1 - share) / num + z * z / (4 * num * num)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def _difference(source: np.ndarray, split: np.ndarray, z: float) -> dict[str, Any]:
    """Newcombe's interval for the difference of two shares, from pairs of share and size."""
    (share, num), (other, other_num) = source.tolist(), split.tolist()
    (low, high), (other_low, other_high) = wilson_interval(share, num, z), wilson_interval(other, other_num, z)
    difference = other - share
    result_low = difference - ((other - other_low) ** 2 + (high - share) ** 2) ** 0.5
    result_high = difference + ((other_high - other) ** 2 + (share - low) ** 2) ** 0.5
    is_large = abs(difference) >= LEAST_DIFFERENCE or max(share, other) >= LEAST_RATIO * min(share, other)
    return {
        "difference": difference,
        "low": result_low,
        "high": result_high,
        "is_shift": bool((result_low > 0 or result_high < 0) and is_large),
    }


def score_baselines(
    statistics: Mapping[str, SplitStatistics], splits: Mapping[str, Sequence[Study]], labeler: Labeler, margin: float
) -> dict[str, Any]:
    """Score constant reports on val and test: constant normal, the most frequent training report, the best constants.

    Returns:
        `reports`: text by name; `train_count`: number of occurrences of the most frequent report in train; `scores`: by
        split, see `evaluate_systems`. Studies with an empty report are not scored, and a split of them has no scores.
    """
    reports = {"constant normal": CONSTANT_NORMAL}
    count, best = 0, None
    if "train" in statistics and statistics["train"].is_written.any():
        report, count = _most_frequent(statistics["train"], splits["train"])
        reports["most frequent report"] = report
        total = int(statistics["train"].is_written.sum())
        some = [study.report for study in evenly_spaced(splits["train"])]
        best = BestConstants.of(some, labeler, margin)
        best = best and dataclasses.replace(best, total=total)
    scores = {}
    for split, part in statistics.items():
        if split != "train" and part.is_written.any():
            target = [study.report for study in splits[split] if study.report.strip()]
            systems = {name: [report] * len(target) for name, report in reports.items()}
            scores[split] = evaluate_systems(systems, target, labeler, margin, best=best)
    return {"reports": reports, "train_count": count, "scores": scores}


def _most_frequent(part: SplitStatistics, studies: Sequence[Study]) -> tuple[str, int]:
    """The same as `most_frequent_report` of the training reports, without all texts in memory, and its frequency."""
    counts: dict[bytes, int] = {}
    for name, is_written in zip(part.exact, part.is_written, strict=True):
        counts[name] = counts.get(name, 0) + int(is_written)
    most = max(counts.values())
    first = {name: row for row, name in reversed(list(enumerate(part.exact))) if counts[name] == most}
    return min(studies[row].report for row in first.values()), most
