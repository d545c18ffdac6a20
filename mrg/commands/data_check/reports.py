"""Statistics of reports: lengths, empty and repeated ones, and leakage between splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mrg.commands.data_check.statistics import SplitStatistics
from mrg.datamodules.study import Study
from mrg.metrics.conditions import CONDITIONS, POSITIVE

SHORT = 3
"""Reports with fewer words are counted as short; protocols for MIMIC-CXR leave them out."""

WORD_BIN = 10
_NUM_REPEATED = 10
_NO_FINDING = CONDITIONS.index("No Finding")


def count_reports(statistics: Mapping[str, SplitStatistics]) -> dict[str, Any]:
    """Count empty and short reports per split, and describe their lengths in words by quantiles and a histogram.

    The keys of the histogram are the lower edges of bins of `WORD_BIN` words. Lengths are those of non-empty reports.
    """
    return {split: _count_reports(part) for split, part in statistics.items()}


def _count_reports(part: SplitStatistics) -> dict[str, Any]:
    words = np.asarray(part.num_words)
    written = words[words > 0]
    bins = Counter((written // WORD_BIN * WORD_BIN).tolist())
    return {
        "num_studies": len(part),
        "empty": part.empty,
        "num_short": int((written < SHORT).sum()),
        "num_indications": part.num_indications,
        "num_priors": part.num_priors,
        "words": {
            "quantiles": {
                name: float(np.quantile(written, share)) if len(written) else None
                for name, share in (("min", 0), ("5%", 0.05), ("median", 0.5), ("95%", 0.95), ("max", 1))
            },
            "histogram": {str(start): bins[start] for start in sorted(bins)},
        },
    }


def count_repeats(statistics: Mapping[str, SplitStatistics], splits: Mapping[str, Sequence[Study]]) -> dict[str, Any]:
    """Count repeated reports, as written (exact) or ignoring case and spacing (folded).

    Returns:
        `within`: for each split, the numbers of distinct reports and of studies that share their report with another;
        `most`: the most frequent folded reports, with their text and their numbers by split.
    """
    within = {
        split: {
            "num_written": int(part.is_written.sum()),
            **{f"distinct_{how}": len(set(_written(part, how))) for how in ("exact", "folded")},
            **{f"sharing_{how}": _num_sharing(_written(part, how)) for how in ("exact", "folded")},
        }
        for split, part in statistics.items()
    }
    counts = {split: Counter(_written(part, "folded")) for split, part in statistics.items()}
    total: Counter[bytes] = sum(counts.values(), Counter())
    most = []
    for name, count in total.most_common(_NUM_REPEATED):
        if count > 1:
            first = next(split for split in statistics if counts[split][name])
            report = splits[first][statistics[first].folded.index(name)].report
            most.append({"report": report, "count": count, **{split: counts[split][name] for split in statistics}})
    return {"within": within, "most": most}


def _written(part: SplitStatistics, how: str) -> list[bytes]:
    names: list[bytes] = getattr(part, how)
    return [name for name, words in zip(names, part.num_words, strict=True) if words]


def _num_sharing(names: Sequence[bytes]) -> int:
    return sum(count for count in Counter(names).values() if count > 1)


def measure_leakage(statistics: Mapping[str, SplitStatistics]) -> list[dict[str, Any]]:
    """Count the studies of a split that share a report or a patient with an earlier split, for all pairs of splits.

    Returns:
        Rows with `split` and `source`; `exact` and `folded`, the numbers of studies whose report occurs in `source`;
        `free`, the number of those whose folded report does not; `abnormal`, the same among the studies without No
        Finding; and `patients` and `patient_studies`, the shared patients and their studies in `split`, None if either
        side has no patient ids.
    """
    names = list(statistics)
    pairs = [(split, source) for i, split in enumerate(names) for source in names[:i]]
    return [
        {"split": split, "source": source, **_leakage(statistics[split], statistics[source])}
        for split, source in pairs
        if len(statistics[split]) and len(statistics[source])
    ]


def _leakage(part: SplitStatistics, source: SplitStatistics) -> dict[str, Any]:
    seen = {how: _occurs_in(part, source, how) for how in ("exact", "folded")}
    abnormal = part.is_written & (part.labels[:, _NO_FINDING] != POSITIVE)
    patients, others = np.asarray(part.patients), np.asarray(source.patients)
    shared = np.isin(patients, others) & (patients >= 0)
    is_known = (patients >= 0).any() and (others >= 0).any()
    return {
        "num_studies": len(part),
        **{how: int(flags.sum()) for how, flags in seen.items()},
        "free": len(part) - int(seen["folded"].sum()),
        "abnormal": {
            "num_studies": int(abnormal.sum()),
            **{how: int((flags & abnormal).sum()) for how, flags in seen.items()},
        },
        "patients": len(np.unique(patients[shared])) if is_known else None,
        "patient_studies": int(shared.sum()) if is_known else None,
    }


def _occurs_in(part: SplitStatistics, source: SplitStatistics, how: str) -> np.ndarray:
    """(N,) bool: whether a non-empty report of a split occurs in another one."""
    known = set(getattr(source, how))
    flags = np.fromiter((name in known for name in getattr(part, how)), bool, len(part))
    result: np.ndarray = flags & part.is_written
    return result
