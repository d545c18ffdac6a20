"""Reports: how long they are, which are empty, which stand twice, and which of the test split stand in train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mrg.commands.data_check.facts import SplitFacts
from mrg.datamodules.study import Study
from mrg.metrics.conditions import CONDITIONS, POSITIVE

SHORT = 3
"""Reports of fewer words are counted: they rarely describe an image, and MIMIC-CXR protocols leave them out."""

WORD_BIN = 10
_NUM_REPEATED = 10
_NO_FINDING = CONDITIONS.index("No Finding")


def count_reports(facts: Mapping[str, SplitFacts]) -> dict[str, Any]:
    """For each split: empty and short reports, and lengths in words as quantiles and as a histogram.

    The histogram's keys are the lower edges of bins of `WORD_BIN` words; empty reports are left out of all lengths.
    """
    return {split: _count_reports(part) for split, part in facts.items()}


def _count_reports(part: SplitFacts) -> dict[str, Any]:
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


def count_repeats(facts: Mapping[str, SplitFacts], splits: Mapping[str, Sequence[Study]]) -> dict[str, Any]:
    """Equal reports within splits, and the most repeated ones; as written (exact), or case and spacing aside (folded).

    Returns:
        `within`: for each split the numbers of different reports, and of studies that share theirs with another one;
        `most`: the reports that stand most often, case and spacing aside, with their text and numbers by split.
    """
    within = {
        split: {
            "num_written": int(part.is_written.sum()),
            **{f"distinct_{how}": len(set(_written(part, how))) for how in ("exact", "folded")},
            **{f"sharing_{how}": _num_sharing(_written(part, how)) for how in ("exact", "folded")},
        }
        for split, part in facts.items()
    }
    counts = {split: Counter(_written(part, "folded")) for split, part in facts.items()}
    total: Counter[bytes] = sum(counts.values(), Counter())
    most = []
    for name, count in total.most_common(_NUM_REPEATED):
        if count > 1:
            first = next(split for split in facts if counts[split][name])
            report = splits[first][facts[first].folded.index(name)].report
            most.append({"report": report, "count": count, **{split: counts[split][name] for split in facts}})
    return {"within": within, "most": most}


def _written(part: SplitFacts, how: str) -> list[bytes]:
    names: list[bytes] = getattr(part, how)
    return [name for name, words in zip(names, part.num_words, strict=True) if words]


def _num_sharing(names: Sequence[bytes]) -> int:
    return sum(count for count in Counter(names).values() if count > 1)


def measure_leakage(facts: Mapping[str, SplitFacts]) -> list[dict[str, Any]]:
    """For each pair of splits, how many studies of the later one have a report, or a patient, of the earlier one.

    Returns:
        Rows with `split` and `source`; `exact` and `folded`, studies whose report stands in `source`; `free`, studies
        whose folded report does not; the first two again among the studies that the labeler does not call normal; and
        `patients` and `patient_studies`, the shared patients and the studies of `split` they have, None where no study
        of either side names its patient.
    """
    names = list(facts)
    pairs = [(split, source) for i, split in enumerate(names) for source in names[:i]]
    return [
        {"split": split, "source": source, **_leakage(facts[split], facts[source])}
        for split, source in pairs
        if len(facts[split]) and len(facts[source])
    ]


def _leakage(part: SplitFacts, source: SplitFacts) -> dict[str, Any]:
    seen = {how: _stands_in(part, source, how) for how in ("exact", "folded")}
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


def _stands_in(part: SplitFacts, source: SplitFacts, how: str) -> np.ndarray:
    """(N,) bool: which reports of a split stand in another one; an empty report stands nowhere."""
    known = set(getattr(source, how))
    flags = np.fromiter((name in known for name in getattr(part, how)), bool, len(part))
    result: np.ndarray = flags & part.is_written
    return result
