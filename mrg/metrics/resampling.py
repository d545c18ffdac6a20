"""Intervals and p-values of corpus scores that follow from sums over reports.

Every score here is a function of column sums of one matrix, reports by numbers: counts of true positives, false
positives and false negatives, and per-report scores. Resampling reports is then a product of a matrix of weights with
that matrix, which serves all scores, systems and trials at once; nothing is labelled or scored twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.log import log
from mrg.metrics.ce import ratio, report_counts
from mrg.metrics.conditions import CONDITIONS, CONVENTIONS, NUM_CONDITIONS, SETS, condition_indices
from mrg.metrics.labels import Scorer, has_text
from mrg.metrics.mccs import mccs
from mrg.metrics.packed import Gathered, Matrix

# Number of resampled reports whose weights are held at a time, fewest trials that share them, and number of reports
# whose numbers are held in float64 at a time: what is held for each different pair of label rows are 84 bits of counts
# and seven means.
_BLOCK = 2_000_000
_TRIALS = 32
_ROWS = 16_384
_MAPPINGS = ("negative", "positive")
_SETS = list(SETS.values())
_EXAMPLES = {f"CE-F1 {name}": own for name, own in CONVENTIONS.items() if own["average"] == "example"}
MIN_CASES = 10
"""Fewest references with a condition that counts in the macro average of informedness."""


class ReportSums:
    """Per-report numbers of one system whose sums give its scores.

    Args:
        preds: (N, 14) label classes.
        target: (N, 14) label classes.
        margin: Margin of MCCS.
        is_written: (N,) bool, False for empty predictions, whose MCCS is 0.
        extras: Name -> (N,) further scores per report, whose mean is the corpus score.
        min_cases: Fewest references with a condition that counts in informedness; without such a condition, the scores
            do not include informedness.

    Raises:
        UserError: If there is no report.
    """

    @classmethod
    def of(
        cls,
        preds: Sequence[str],
        labels: Tensor,
        target: Sequence[str],
        reference: Tensor,
        margin: float,
        scorers: Mapping[str, Scorer] | None = None,
        min_cases: int = MIN_CASES,
    ) -> ReportSums:
        """Sums of N reports whose labels are known.

        Args:
            preds: N generated reports.
            labels: (N, 14) label classes of `preds`.
            target: N reference reports.
            reference: (N, 14) label classes of `target`.
            margin: Margin of MCCS.
            scorers: Name -> further score per report.
            min_cases: Fewest references with a condition that counts in informedness.
        """
        extras = {name: torch.as_tensor(scorer(preds, target)) for name, scorer in (scorers or {}).items()}
        return cls(labels, reference, margin, has_text(preds), extras, min_cases)

    def __init__(
        self,
        preds: Tensor,
        target: Tensor,
        margin: float = 0.5,
        is_written: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
        min_cases: int = MIN_CASES,
    ) -> None:
        if not len(preds):
            raise UserError("Expected at least one report to score, but got none.")
        first, place = _distinct_pairs(preds, target, is_written)
        tables: list[np.ndarray] = []
        for start in range(0, len(first), _ROWS):
            rows = torch.from_numpy(first[start : start + _ROWS])
            block = _numbers(preds[rows].long(), target[rows].long(), margin)
            if is_written is not None:
                block[-1][:, 0] *= is_written[rows].cpu().numpy()
            widths = [part.shape[1] for part in block]
            block[:-1] = [np.packbits(part, axis=1) for part in block[:-1]]
            tables = tables or [np.empty((len(first), part.shape[1]), part.dtype) for part in block]
            for table, part in zip(tables, block, strict=True):
                table[start : start + len(part)] = part
        self.means = ["MCCS", *_EXAMPLES, *(extras or {})]
        self.parts: list[Matrix] = [Gathered(table, place, width) for table, width in zip(tables, widths, strict=True)]
        if extras:
            values = [value.double().cpu().reshape(-1) for value in extras.values()]
            self.parts.append(torch.stack(values, 1).numpy())
        self.num_reports, self.min_cases = len(preds), min_cases
        sums = torch.from_numpy(self.total()[: 2 * 3 * NUM_CONDITIONS]).reshape(2, 3, NUM_CONDITIONS)
        self.defined = dict(zip(_MAPPINGS, sums[:, [0, 2]].sum(1) > 0, strict=True))
        cases = (sums[1, 0] + sums[1, 2])[:13]  # of "positive"
        self.informative = (cases >= max(1, min_cases)) & (cases < len(preds))

    @property
    def columns(self) -> np.ndarray:
        """(N, K) float64: the numbers of each report."""
        return np.concatenate([part[:] for part in self.parts], 1, dtype=np.float64)

    def total(self) -> np.ndarray:
        """(K,) sums over all reports."""
        sums = np.zeros(sum(part.shape[1] for part in self.parts))
        for row in range(0, self.num_reports, _ROWS):
            numbers = np.concatenate([part[row : row + _ROWS] for part in self.parts], 1, dtype=np.float64)
            sums = np.concatenate([sums[None], numbers]).sum(0)
        return sums

    def scores(self, sums: np.ndarray, resampled: bool = False) -> dict[str, np.ndarray]:
        """Corpus scores by name.

        Args:
            sums: (T, K) column sums of `columns` over T samples of N reports.
            resampled: Whether a condition that the references have but those of a sample lack is left out of the
                sample's macro average; its F1 of 0 there would bias the intervals of rare conditions downwards.

        Returns:
            Name -> (T,) scores.
        """
        size = 3 * NUM_CONDITIONS
        means = dict(zip(self.means, sums[:, 2 * size :].T / self.num_reports, strict=True))
        result = {"MCCS": means.pop("MCCS"), **dict.fromkeys(f"CE-F1 {name}" for name in CONVENTIONS)}
        if self.informative.any():
            positive = torch.from_numpy(sums[:, size : 2 * size]).reshape(-1, 3, NUM_CONDITIONS)[:, :, :13]
            result = {"MCCS": result.pop("MCCS"), "informedness": self._informedness(positive, resampled), **result}
        for i, mapping in enumerate(_MAPPINGS):
            counts = torch.from_numpy(sums[:, i * size : (i + 1) * size]).reshape(-1, 3, NUM_CONDITIONS)
            averages = _averages(counts.transpose(0, 1).contiguous(), self.defined[mapping] if resampled else None)
            for name, setting in CONVENTIONS.items():
                if setting["uncertain"] == mapping and setting["average"] != "example":
                    score = averages[setting["average"]][:, _SETS.index(setting["conditions"])]
                    result[f"CE-F1 {name}"] = score.numpy()
        return {**result, **means}

    def _informedness(self, counts: Tensor, resampled: bool) -> np.ndarray:
        """Macro informedness (T,) from (T, 3, 13) counts: recall + specificity - 1 (Youden, 1950).

        A condition that all references of a sample have, or none, is left out of that sample; a sample that is left
        without any condition has the score of all reports, because 0 would be the score of a constant.
        """
        tp, fp, fn = counts.unbind(1)
        cases = tp + fn
        others = self.num_reports - cases
        chosen = self.informative if resampled else cases >= self.min_cases
        chosen = chosen & (cases > 0) & (others > 0)
        values = tp / cases.clamp(min=1) + (others - fp) / others.clamp(min=1) - 1
        mean = (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)
        if resampled and (lacking := ~chosen.any(1)).any():
            mean[lacking] = self.corpus()["informedness"]
        return mean.numpy()

    def corpus(self) -> dict[str, float]:
        """Corpus scores of all reports, without resampling."""
        return {name: float(value[0]) for name, value in self.scores(self.total()[None]).items()}


def _distinct_pairs(preds: Tensor, target: Tensor, is_written: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Indices (D,) of the first reports with each pair of label rows, and (N,) the pair that each report has."""
    shifts = 2 * torch.arange(NUM_CONDITIONS, device=preds.device)  # two bits per class, 56 of both sides
    codes = [
        ((p.long() << shifts).sum(1) << 2 * NUM_CONDITIONS) + (t.long() << shifts).sum(1)
        for p, t in zip(preds.split(_ROWS), target.split(_ROWS), strict=True)
    ]
    code = torch.cat(codes).cpu()
    if is_written is not None:
        code = code << 1 | is_written.cpu()
    _, first, place = np.unique(code.numpy(), return_index=True, return_inverse=True)
    return first, place.reshape(-1).astype(np.int32)


def _numbers(preds: Tensor, target: Tensor, margin: float) -> list[np.ndarray]:
    """Numbers of each report: counts by mapping, (N, 42) uint8 each, and (N, 7) float64, MCCS and `_EXAMPLES`."""
    counts = {mapping: report_counts(preds, target, mapping, torch.uint8) for mapping in _MAPPINGS}  # (3, N, 14)
    values = [mccs(preds, target, margin, reduction="none")]
    for setting in _EXAMPLES.values():
        columns = condition_indices(setting["conditions"])
        values.append(ratio(counts[setting["uncertain"]][:, :, columns].sum(2)))
    flat = [counts[mapping].permute(1, 0, 2).reshape(len(preds), -1) for mapping in _MAPPINGS]
    return [part.cpu().numpy() for part in (*flat, torch.stack(values, 1).double())]


def _averages(counts: Tensor, defined: Tensor | None) -> dict[str, Tensor]:
    """`ce.average_score` of (3, T, 14) counts of T samples, for all sets of conditions at once: each (T, 3).

    Args:
        counts: True positives, false positives, false negatives.
        defined: (14,) bool, conditions of the references, left out of a sample without a reference that has them; None
            keeps all. It does not depend on the system, so that systems are compared on the same conditions.
    """
    chosen = torch.tensor([[float(c in conditions) for conditions in _SETS] for c in CONDITIONS], dtype=counts.dtype)
    values, support = ratio(counts), counts[0] + counts[2]
    weight = 1 / chosen.sum(0)
    if defined is not None:
        # The mean over the conditions that the sample has, times the share of conditions that the references have.
        has = (support > 0).to(counts.dtype) @ chosen
        weight = (defined.to(counts.dtype) @ chosen) * weight / has.clamp(min=1)
    return {
        "micro": ratio(counts @ chosen),
        "macro": values @ chosen * weight,
        "weighted": (values * support) @ chosen / (support @ chosen).clamp(min=1),
    }


class Resampled(Protocol):
    """One system: matrices of its reports, and its scores from sums of their columns, such as `ReportSums`."""

    @property
    def parts(self) -> Sequence[Matrix]:
        """Matrices (N, K) side by side."""

    def scores(self, sums: np.ndarray, resampled: bool = False) -> dict[str, np.ndarray]:
        """Scores by name of (T, K) sums over T samples of N reports: (T,) each."""


def bootstrap(systems: Sequence[Resampled], num_trials: int = 1000, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Scores of reports resampled with replacement (Efron and Tibshirani, 1993), the same samples for all systems.

    Returns:
        For each system, name -> (num_trials,) scores.
    """
    rng = np.random.default_rng(seed)

    def draw(num: int, num_reports: int) -> np.ndarray:
        weights = np.empty((num, num_reports), np.uint8)  # a count of 256 has a probability below 1e-500
        for row in weights:
            row[:] = np.bincount(rng.integers(0, num_reports, num_reports), minlength=num_reports)
        return weights

    sums = _sums([system.parts for system in systems], num_trials, draw)
    return [system.scores(part, resampled=True) for system, part in zip(systems, sums, strict=True)]


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values, the central `level` of them."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ranks(
    values: Mapping[str, Mapping[str, float]], samples: Mapping[str, Mapping[str, np.ndarray]], by: str
) -> dict[str, dict[str, float]]:
    """Rank systems by one score, with the stability of each rank under the bootstrap.

    Args:
        values: System -> score -> value.
        samples: System -> score -> values in the bootstrap samples, which are the same for all systems.
        by: Score of the ranking.

    Returns:
        System -> `rank` (1 is best; equal scores share the better rank), `low` and `high` (95 % interval of the rank
        over the samples), and `first` (share of the samples in which no other system is better); best first.
    """
    points = np.array([own[by] for own in values.values()])
    drawn = np.stack([samples[name][by] for name in values])
    rank = 1 + (points[None, :] > points[:, None] + 1e-12).sum(1)
    of_samples = 1 + (drawn[None, :] > drawn[:, None] + 1e-12).sum(1)
    low, high = np.quantile(of_samples, (0.025, 0.975), axis=1, method="nearest")
    rows = {
        name: {"rank": int(rank[i]), "low": int(low[i]), "high": int(high[i])}
        | {"first": float((of_samples[i] == 1).mean())}
        for i, name in enumerate(values)
    }
    return dict(sorted(rows.items(), key=lambda row: row[1]["rank"]))


def randomization_p(a: ReportSums, b: ReportSums, num_trials: int = 10_000, seed: int = 0) -> dict[str, float]:
    """Two-sided p-values of the difference between two systems by approximate randomization (Noreen, 1989).

    Each trial exchanges the two predictions of a report with probability one half; p is the fraction of trials whose
    difference is at least as large as the observed one, which is counted as a trial.

    Returns:
        Name -> p, at least `1 / (num_trials + 1)`.
    """
    rng = np.random.default_rng(seed)

    def draw(num: int, num_reports: int) -> np.ndarray:
        bits = rng.integers(0, 256, (num, -(-num_reports // 8)), dtype=np.uint8)
        return np.unpackbits(bits, axis=1, count=num_reports)

    observed = {name: value - b.corpus()[name] for name, value in a.corpus().items()}
    # After an exchange, the sums of the first system are its own plus the differences of the exchanged reports.
    change = b.columns - a.columns
    change = change[change.any(1)] if change.any() else change[:1]  # equal reports need no exchange
    exchanged = next(_sums([[change]], num_trials, draw))
    total_a, total_b = a.total(), b.total()
    scores_a, scores_b = a.scores(total_a + exchanged), a.scores(total_b - exchanged)
    result = {}
    for name, gap in observed.items():
        at_least = np.abs(scores_a[name] - scores_b[name]) >= abs(gap) - 1e-12
        result[name] = float((1 + at_least.sum()) / (num_trials + 1))
    return result


def _sums(
    systems: Sequence[Sequence[Matrix]], num_trials: int, draw: Callable[[int, int], np.ndarray]
) -> Iterator[np.ndarray]:
    """Weighted column sums (num_trials, K) of the matrices of each system, side by side, under the same weights."""
    num_reports = len(systems[0][0])
    matrices = [matrix for system in systems for matrix in system]
    block = max(1, min(num_trials, max(_BLOCK // num_reports, _TRIALS)))
    parts, told = [], time.monotonic()
    for start in range(0, num_trials, block):
        if time.monotonic() - told > 10:
            told = time.monotonic()
            log.info(f"Resampled {num_reports:,} reports {start:,} of {num_trials:,} times.")
        weights = torch.from_numpy(draw(min(block, num_trials - start), num_reports))
        sums = torch.zeros(len(weights), sum(matrix.shape[1] for matrix in matrices), dtype=torch.float64)
        for row in range(0, num_reports, _ROWS):
            numbers = np.concatenate([matrix[row : row + _ROWS] for matrix in matrices], 1, dtype=np.float64)
            sums += weights[:, row : row + _ROWS].double() @ torch.from_numpy(numbers)
        parts.append(sums)
    widths = [sum(matrix.shape[1] for matrix in system) for system in systems]
    yield from np.split(torch.cat(parts).numpy(), np.cumsum(widths)[:-1], axis=1)
