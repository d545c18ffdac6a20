"""Marks of findings in the texts of a page: their kinds, and the words that carry them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

from mrg.metrics.conditions import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.verdicts import VERDICTS

MARKED = {
    "correct": "stated in both reports with the same certainty",
    "uncertain": "stated in both reports, with certainty in only one",
    "missed": "stated in the reference, not mentioned by the model",
    "hallucinated": "stated by the model, not mentioned in the reference",
    "contradicted": "stated in one report, denied in the other",
}
"""Verdicts that are marked in the texts, and their legend; see `mrg.metrics.verdicts`."""

STATED = {
    "stated": "positive finding",
    "possible": "uncertain finding",
    "ruled out": "negative finding",
}
"""Marks of reports without a reference, and their legend."""

_KINDS = {POSITIVE: "stated", UNCERTAIN: "possible", NEGATIVE: "ruled out"}

Piece: TypeAlias = str | list[Any]
"""Plain text, or `[text, [[kind, condition], …]]` with the condition's index in `CONDITIONS`."""


class Mention(Protocol):
    """The part of `mrg.metrics.labelers.rules.Evidence` that marks need."""

    condition: str
    label: int
    mention_start: int
    mention_end: int


def marked_text(text: str, mentions: Sequence[Mention], labels: Sequence[int], kinds: Sequence[str]) -> list[Piece]:
    """Split a report at the words that name its findings.

    A mention whose label is not that of the report is left plain: next to "left effusion", "no right effusion" is not
    decisive.

    Args:
        text: Report.
        mentions: Evidence of the labeler.
        labels: 14 label classes of the report.
        kinds: 14 kinds of mark for decisive mentions of each condition; an empty one is not marked.

    Returns:
        Pieces whose joined texts are the report.
    """
    shown = []
    for mention in mentions:
        index = CONDITIONS.index(mention.condition)
        if mention.label == labels[index] and kinds[index]:
            shown.append((mention.mention_start, mention.mention_end, kinds[index], index))
    edges = sorted({0, len(text), *(place for start, end, *_ in shown for place in (start, end))})
    pieces: list[Piece] = []
    for start, end in pairwise(edges):
        marks = [[kind, index] for first, stop, kind, index in shown if first <= start and end <= stop]
        marks = [mark for place, mark in enumerate(marks) if mark not in marks[:place]]
        pieces.append([text[start:end], marks] if marks else text[start:end])
    return pieces


def verdict_kinds(row: Sequence[int]) -> list[str]:
    """Kinds of mark from 14 indices into `VERDICTS`."""
    return [VERDICTS[index] if VERDICTS[index] in MARKED else "" for index in row]


def label_kinds(row: Sequence[int]) -> list[str]:
    """Kinds of mark from 14 label classes, without a reference."""
    return [_KINDS.get(label, "") for label in row]
