"""F1 of findings with their attributes, and of changes, as rows of the table, with the best constant of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mrg.metrics import finding_f1, labelers
from mrg.metrics.constants import evenly_spaced
from mrg.metrics.finding_f1 import ChangeF1, FindingF1, report_findings
from mrg.metrics.imports import name_of
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.scores.group import Group, Row, micro_f1
from mrg.metrics.scores.kept import source_digest

ATTRIBUTES = {"FindingF1 side": ("side",), "FindingF1 side+place+severity": ("side", "place", "severity")}


class _Reader:
    """Reads each text once."""

    def __init__(self, reader: Any) -> None:
        self.findings = lru_cache(200_000)(reader.findings)


def finding_group(labeler: Any) -> Group:
    """Micro F1 of findings with their side, of findings with all attributes, and of changes.

    Args:
        labeler: Labeler; rules read the findings if it does not.
    """
    own = labeler if callable(getattr(labeler, "findings", None)) else RulesLabeler()
    reader = _Reader(own)
    metrics: list[Any] = [FindingF1(attributes, reader) for attributes in ATTRIBUTES.values()]
    metrics.append(ChangeF1(reader))
    names = [*ATTRIBUTES, "ChangeF1"]
    how = f"micro over 13 conditions, read by {name_of(own)}"
    conventions = [f"{how}; {' and '.join(kinds)} as in the reference" for kinds in ATTRIBUTES.values()]
    conventions.append(f"{how}; pairs of a condition and its change")
    rows = [Row(name, text, micro_f1(3 * i)) for i, (name, text) in enumerate(zip(names, conventions, strict=True))]

    def values(preds: Sequence[str], target: Sequence[str]) -> np.ndarray:
        return np.concatenate([metric.pair_counts(preds, target).numpy() for metric in metrics], 1)

    def best(train: Sequence[str], target: Sequence[str]) -> dict[str, np.ndarray]:
        known, wanted = (
            [report_findings(reader, text) for text in texts if text.strip()]
            for texts in (evenly_spaced(train), target)
        )
        result = {}
        for i, name in enumerate(names):
            items = _finding_items(ATTRIBUTES[name]) if name in ATTRIBUTES else _change_items
            counts = np.zeros((len(target), 3 * len(names)))
            counts[:, 3 * i : 3 * i + 3] = constant_counts(best_items(known, items), wanted, items)
            result[name] = counts
        return result

    is_ours = type(own) is RulesLabeler
    code = source_digest(Path(finding_f1.__file__), Path(labelers.__file__).parent) if is_ours else ""
    settings = {"score": "finding", "reader": name_of(own), "code": code} if is_ours else {}
    return Group("finding", rows, values, settings, 500, best)


Items = Callable[[Any], dict[Any, tuple[Any, ...]]]
"""Function from what `report_findings` reads in a report to key -> attributes."""


def _finding_items(kinds: Sequence[str]) -> Items:
    """Condition -> its attributes."""
    return lambda read: {name: tuple(found[kind] for kind in kinds) for name, found in read[0].items()}


def _change_items(read: Any) -> dict[Any, tuple[Any, ...]]:
    """(Condition, change) -> nothing further that must match."""
    return dict.fromkeys(read[1], ())


def _matches(stated: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    return all(not wanted or wanted == own for own, wanted in zip(stated, expected, strict=True))


def best_items(reports: Sequence[Any], items: Items) -> dict[Any, Any]:
    """The findings whose statement in every report has the highest micro F1; empty if there is no finding.

    With k findings stated in each of N reports, F1 = 2 hits / (k N + findings of the references): the k findings with
    the most hits are the best ones, and all k are tried. The attributes of each are the best ones that a report has.

    Args:
        reports: What `report_findings` reads in N reports.
        items: Function from that to key -> attributes.
    """
    held = [items(report) for report in reports]
    options: dict[Any, Counter[tuple[Any, ...]]] = {}
    for own in held:
        for key, value in own.items():
            options.setdefault(key, Counter())[value] += 1
    hits: dict[Any, tuple[int, Any]] = {}
    for key, counts in options.items():
        scored = [(sum(n for wanted, n in counts.items() if _matches(own, wanted)), own) for own in counts]
        hits[key] = max(scored, key=lambda pair: (pair[0], repr(pair[1])))
    total = sum(map(len, held))
    order = sorted(hits, key=lambda key: (-hits[key][0], repr(key)))
    best, chosen, sum_of_hits = 0.0, 0, 0
    for k, key in enumerate(order, 1):
        sum_of_hits += hits[key][0]
        score = 2 * sum_of_hits / (k * len(held) + total)
        if score > best + 1e-12:
            best, chosen = score, k
    return {key: hits[key][1] for key in order[:chosen]}


def constant_counts(constant: Mapping[Any, Any], reports: Sequence[Any], items: Items) -> np.ndarray:
    """True positives, false positives and false negatives (N, 3) of a constant on N references."""
    rows = []
    for report in reports:
        wanted = items(report)
        right = sum(key in wanted and _matches(own, wanted[key]) for key, own in constant.items())
        rows.append((right, len(constant) - right, len(wanted) - right))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)
