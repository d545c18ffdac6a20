"""A rule-based labeler of English chest-radiograph reports: sentences, mentions, negation, doubt.

Choices: several mentions of one condition count positive over uncertain over negative; a change word ("stable") keeps a
finding positive; "the lungs are clear" leaves the lungs' conditions blank, as CheXpert does (Irvin et al., 2019); No
Finding holds exactly when no condition but Support Devices is positive or uncertain, and the report is not empty.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mrg.metrics.conditions import BLANK, CONDITIONS, NEGATIVE, NUM_CONDITIONS, POSITIVE, UNCERTAIN
from mrg.metrics.labelers import phrases

SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?\n]+(?=\s|$)|\.(?=\S)[^.!?\n]*|$)")
PATTERNS = {condition: re.compile(pattern) for condition, pattern in phrases.MENTIONS.items()}
ORGANS = {condition: re.compile(pattern) for condition, pattern in phrases.ORGAN.items()}
NORMAL, ENLARGED = re.compile(phrases.NORMAL), re.compile(phrases.ENLARGED)
NEGATION_BEFORE, NEGATION_AFTER = re.compile(phrases.NEGATION_BEFORE), re.compile(phrases.NEGATION_AFTER)
UNCERTAIN_BEFORE, UNCERTAIN_AFTER = re.compile(phrases.UNCERTAIN_BEFORE), re.compile(phrases.UNCERTAIN_AFTER)
SCOPE_END, CONTRARY = re.compile(phrases.SCOPE_END), re.compile(phrases.CONTRARY)
PRIORITY = {BLANK: 0, NEGATIVE: 1, UNCERTAIN: 2, POSITIVE: 3}


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One mention: its condition, its class, its place in the text and the word that decided."""

    condition: str
    label: int
    start: int
    end: int
    cue: str


class RulesLabeler:
    """Labels reports by rules; the same text always gives the same labels."""

    name = "rules"

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports.

        Returns:
            (N, 14) int64 label classes in the order of `CONDITIONS`.

        Raises:
            TypeError: If an item is not a string; names its index.
        """
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"Expected a list of strings, but item {index} is of type {type(text).__name__}.")
        rows = [_labels(text) for text in texts]
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), NUM_CONDITIONS)

    def evidence(self, text: str) -> list[Evidence]:
        """Every mention that the labels rest on, in the order of the text."""
        return sorted(_evidence(text), key=lambda found: found.start)


@lru_cache(maxsize=65536)
def _labels(text: str) -> tuple[int, ...]:
    labels = [BLANK] * NUM_CONDITIONS
    for found in _evidence(text):
        index = CONDITIONS.index(found.condition)
        if PRIORITY[found.label] > PRIORITY[labels[index]]:
            labels[index] = found.label
    pathologies = labels[:12]
    if text.strip() and not any(label in (POSITIVE, UNCERTAIN) for label in pathologies):
        labels[-1] = POSITIVE
    return tuple(labels)


def _evidence(text: str) -> Iterator[Evidence]:
    for sentence in SENTENCE.finditer(text.lower()):
        if not sentence[0].strip():
            continue
        # Same length, so that offsets stay those of the text.
        words = CONTRARY.sub(lambda match: "_" * len(match[0]), sentence[0])
        words = re.sub(r"\s", " ", words)
        for condition, pattern in PATTERNS.items():
            for mention in pattern.finditer(words):
                label, cue = _classify(condition, words, mention)
                if label != BLANK:
                    start = sentence.start()
                    yield Evidence(condition, label, start + mention.start(), start + mention.end(), cue)


def _classify(condition: str, sentence: str, mention: re.Match[str]) -> tuple[int, str]:
    before, after = sentence[: mention.start()], sentence[mention.end() :]
    ends = list(SCOPE_END.finditer(before))
    before = before[ends[-1].end() :] if ends else before
    end = SCOPE_END.search(after)
    after = after[: end.start()] if end else after
    if condition in ORGANS and ORGANS[condition].fullmatch(mention[0]) and not ENLARGED.search(mention[0]):
        return _classify_organ(before, after)
    for pattern, part, label in (
        (UNCERTAIN_AFTER, after, UNCERTAIN),
        (NEGATION_AFTER, after, NEGATIVE),
        (UNCERTAIN_BEFORE, before, UNCERTAIN),
        (NEGATION_BEFORE, before, NEGATIVE),
    ):
        cue = pattern.search(part)
        if cue:
            return label, cue[0].strip()
    return POSITIVE, mention[0]


def _classify_organ(before: str, after: str) -> tuple[int, str]:
    """An organ by name says nothing until its clause says that it is normal or enlarged."""
    normal = NORMAL.search(after) or NORMAL.search(before)
    if normal:
        return NEGATIVE, normal[0]
    enlarged = ENLARGED.search(after) or ENLARGED.search(before)
    if not enlarged:
        return BLANK, ""
    negated = NEGATION_BEFORE.search(before)
    if negated:
        return NEGATIVE, negated[0]
    return (UNCERTAIN if enlarged[0] == "borderline" else POSITIVE), enlarged[0]
