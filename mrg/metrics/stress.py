"""Corruptions of reports that a clinical metric must notice, and one that it must not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

from mrg.metrics.conditions import POSITIVE, UNCERTAIN
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import Scorer

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_SIDES = {"left": "right", "right": "left"}
_NEW = re.compile(r"\b(?:new|newly developed|developing)\b", re.IGNORECASE)


def swap_sides(report: str) -> str:
    """Write right for left and left for right."""
    return re.sub(r"\b(left|right)\b", lambda m: _match_case(_SIDES[m[0].lower()], m[0]), report, flags=re.IGNORECASE)


def flip_negation(report: str) -> str:
    """Assert what the first sentence with "no" negates; if there is none, negate the first asserted finding."""
    flipped, count = re.subn(r"\bNo (?:evidence of )?(\w)", lambda m: m[1].upper(), report, count=1)
    if count:
        return flipped
    sentences = _SENTENCE.split(report)
    stated = _stated(sentences)
    if stated is None:
        return report
    sentence = sentences[stated]
    sentences[stated] = f"No {sentence[:1].lower()}{sentence[1:]}"
    return " ".join(sentences)


def new_to_resolved(report: str) -> str:
    """Write that new findings have resolved."""
    return _NEW.sub(lambda m: _match_case("resolved", m[0]), report)


def drop_finding(report: str) -> str:
    """Leave out the first sentence that states a finding."""
    sentences = _SENTENCE.split(report)
    stated = _stated(sentences)
    return report if stated is None else " ".join(sentences[:stated] + sentences[stated + 1 :])


def reorder(report: str) -> str:
    """Write the sentences in reverse order."""
    return " ".join(reversed(_SENTENCE.split(report)))


CORRUPTIONS: dict[str, Callable[[str], str]] = {
    "swap sides": swap_sides,
    "flip negation": flip_negation,
    "new to resolved": new_to_resolved,
    "drop a finding": drop_finding,
    "reorder": reorder,
}
"""Name -> corruption. A metric must score all but the last below the report itself."""


def stress(scores: Scorer, reports: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Count how often a score falls when a report is corrupted.

    Args:
        scores: Function of generated reports and references to one score per report, such as
            `FindingF1(...).scores`.
        reports: Reports, each of which is its own reference.

    Returns:
        Corruption -> number of reports whose score fell, and number of reports that it changes.
    """
    own = [float(score) for score in scores(list(reports), list(reports))]
    result = {}
    for name, corrupt in CORRUPTIONS.items():
        changed = [i for i, report in enumerate(reports) if corrupt(report) != report]
        values = scores([corrupt(reports[i]) for i in changed], [reports[i] for i in changed]) if changed else []
        fell = sum(float(value) < own[i] - 1e-12 for i, value in zip(changed, values, strict=True))
        result[name] = (fell, len(changed))
    return result


@cache
def _labeler() -> RulesLabeler:
    return RulesLabeler(convention="plain")


def _stated(sentences: Sequence[str]) -> int | None:
    """Index of the first sentence that states one of the 13 conditions."""
    labels = _labeler()(list(sentences))[:, :13]
    rows = ((labels == POSITIVE) | (labels == UNCERTAIN)).any(1).nonzero().flatten().tolist()
    return rows[0] if rows else None


def _match_case(word: str, like: str) -> str:
    return word.capitalize() if like[:1].isupper() else word
