"""A named finding or structure in a text, with its label."""

from __future__ import annotations

import dataclasses

from mrg.metrics.conditions import UNCERTAIN

Span = tuple[int, int]
"""First token and one past the last token."""


@dataclasses.dataclass(slots=True)
class Mention:
    """A finding or structure with its label, which changes while its clause is read.

    Args:
        condition: Index into `CONDITIONS`, -1 for a structure that belongs to none.
        label: A label class; BLANK for a structure without a state.
        span: Tokens of the name.
        cue: Tokens that determine the label.
        structure: A key of `phrases.ANATOMY`, or empty for a finding.
        hint: Whether the finding only hints at its condition and can be called normal ("engorgement").
        denied_as: Index of the condition that a denial by "no" denies, see `lexicon.Entry`.
        certain: Whether a hedge leaves the label unchanged.
        weak: Whether only "stable" or the like determines the label.
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
        """Make the label uncertain, unless the mention is certain."""
        if not self.certain:
            self.label, self.cue = UNCERTAIN, cue
