"""Reports cut into pieces: what speaks of a finding, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

from mrg.metrics.conditions import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.verdicts import VERDICTS

MARKED = VERDICTS[:5]
"""The verdicts that are shown in a text; a denial that both reports agree on is not."""

STATED = {POSITIVE: "stated", UNCERTAIN: "possible", NEGATIVE: "ruled out"}
"""What is shown in a text without a reference: what it says."""

Piece: TypeAlias = str | list[Any]
"""Plain text, or `[text, [[kind, condition], …]]` with the condition's place in `CONDITIONS`."""


class Mention(Protocol):
    """What is needed of `mrg.metrics.labelers.rules.Evidence`."""

    condition: str
    label: int
    mention_start: int
    mention_end: int


def evidence_of(labeler: object) -> Callable[[str], Sequence[Mention]] | None:
    """The labeler's way to show its evidence; `None` where it has none, as CheXbert."""
    found = getattr(labeler, "evidence", None)
    return found if callable(found) else None


def cut(text: str, mentions: Sequence[Mention], labels: Sequence[int], kinds: Sequence[str]) -> list[Piece]:
    """Cut a report at the words that name its findings.

    A mention that does not carry the report's label is left plain: beside "left effusion", "no right effusion" decides
    nothing.

    Args:
        text: The report.
        mentions: Its evidence.
        labels: 14 label classes of the report.
        kinds: 14 kinds, what a decisive mention of each condition is shown as; an empty one is not shown.

    Returns:
        Pieces whose texts joined are the report.
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
    """Kinds for `cut` from 14 places in `VERDICTS`."""
    return [VERDICTS[place] if VERDICTS[place] in MARKED else "" for place in row]


def label_kinds(row: Sequence[int]) -> list[str]:
    """Kinds for `cut` from 14 label classes, where there is no reference."""
    return [STATED.get(label, "") for label in row]
