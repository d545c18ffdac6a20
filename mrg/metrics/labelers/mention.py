"""A place in a text that names a finding or a structure, with what is stated about it."""

from __future__ import annotations

import dataclasses

from mrg.metrics.conditions import UNCERTAIN

Span = tuple[int, int]
"""First token and one past the last token."""


@dataclasses.dataclass(slots=True)
class Mention:
    """A finding or a structure and what is stated about it; `label` changes while its clause is read.

    Args:
        condition: Index into `CONDITIONS`, -1 for a structure that belongs to none.
        label: A label class; BLANK for a structure of which nothing is stated.
        span: The tokens that name it.
        cue: The tokens that decided the label.
        structure: A key of `phrases.ANATOMY`, or empty for a finding.
        hint: The finding only hints at its condition, so that "normal" can be said of it ("engorgement").
        denied_as: Index of the condition that a denial by "no" denies, see `lexicon.Entry`.
        certain: A doubt leaves the label as it is.
        weak: The label is only what "stable" implies.
    """

    condition: int
    label: int
    span: Span
    cue: Span
    structure: str = ""
    hint: bool = False
    denied_as: int | None = None
    certain: bool = False
    weak: bool = False

    def doubt(self, cue: Span) -> None:
        """Make it uncertain, unless it is beyond doubt."""
        if not self.certain:
            self.label, self.cue = UNCERTAIN, cue
