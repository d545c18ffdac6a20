"""One pass over the phrases of a text: which findings are asserted, denied or left open (after NegEx, Chapman 2001).

Two kinds of statement are read. A finding ("effusion") is asserted by its name unless a cue denies or doubts it. A
structure ("heart size") states nothing until a state ("normal", "enlarged") is said of it, before or after it.

A cue acts on the findings behind it until its clause ends, or on the findings before it back to where the clause began.
A clause ends at a full stop, at words such as "but", and, after a verb, at the next comma or "and": "no effusion is
seen, mild cardiomegaly" denies the effusion alone.
"""

from __future__ import annotations

import dataclasses

from mrg.metrics.conditions import BLANK, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.labelers.lexicon import Entry

Span = tuple[int, int]
"""First token and one past the last token."""

_CONDITION_OF = {
    "heart": CONDITIONS.index("Cardiomegaly"),
    "mediastinum": CONDITIONS.index("Enlarged Cardiomediastinum"),
    "angle": CONDITIONS.index("Pleural Effusion"),
    "pleura": CONDITIONS.index("Pleural Effusion"),
    "other": -1,
}
_CHANGES = frozenset(("removal", "resolution", "clearing"))
_FILLERS = frozenset(("a", "an", "the", "some", "also"))


@dataclasses.dataclass
class Mention:
    """A finding or a structure and what is stated about it; `label` changes while its clause is read.

    Args:
        condition: Index into `CONDITIONS`, -1 for a structure that belongs to none.
        label: A label class; BLANK for a structure of which nothing is stated.
        span: The tokens that name it.
        cue: The tokens that decided the label.
        structure: A key of `phrases.ANATOMY`, or empty for a finding.
        hint: The finding only hints at its condition, so that "normal" can be said of it ("engorgement").
    """

    condition: int
    label: int
    span: Span
    cue: Span
    structure: str = ""
    hint: bool = False


class Reader:
    """Reads phrases in order; `mentions` holds everything found so far."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.mentions: list[Mention] = []
        self.either: Mention | None = None
        self._start_clause()

    def read(self, found: list[tuple[Entry, int, int]]) -> list[Mention]:
        """Read the phrases of a whole text and return its mentions."""
        for entry, start, stop in found:
            span = (start, stop)
            if self._is_heading(start):
                self.after_heading = True
            elif self._is_question(start):
                self._ask()
            elif entry.sentence_end or entry.clause_end or (entry.cause and not self._doubted(start)):
                self._end_clause()
            elif entry.separator:
                self._separate(stop)
            else:
                if entry.affirms:
                    self._affirm(start)
                if entry.alternative:
                    self._alternate()
                if not self._look_back(entry, span):
                    self._look_ahead(entry, span)
                if entry.state is not None:
                    self._state(entry, span)
                if entry.structure:
                    self._structure(entry.structure, span)
                for condition, label in entry.findings:
                    self._finding(condition, label, span)
                if entry.verb and not self._is_adjective(start):
                    self._verb()
        self._end_clause()
        return self.mentions

    def _is_heading(self, start: int) -> bool:
        """Whether this is the colon of "Heart: normal in size", which does not part the structure from its state."""
        if self.words[start] != ":" or self.open or self.negation or self.doubt:
            return False
        return bool(self.group) and self.group[-1].span[1] == start

    def _is_question(self, start: int) -> bool:
        """Whether this is the colon of "Effusion: none", after which one word can deny or doubt the finding."""
        bare = not (self.negation or self.doubt or self.silent)
        return self.words[start] == ":" and bare and bool(self.open) and self.open[-1].span[1] == start

    def _doubted(self, start: int) -> bool:
        return self.doubt is not None and self.doubt[1] == start

    def _is_adjective(self, start: int) -> bool:
        """Whether this verb belongs to the noun after it: "no effusion or visualized pneumothorax"."""
        return start > 0 and self.words[start - 1] in ("or", "nor")

    def _end_clause(self) -> None:
        self._use_waiting_state()
        self._answer()
        self._start_clause()

    def _start_clause(self) -> None:
        self.negation: Span | None = None
        self.dropped: Span | None = None
        self.doubt: Span | None = None
        self.silent = False
        self.asked: list[Mention] = []
        self.named_since_cue = False
        self.either = None
        self.open: list[Mention] = []
        self.verb_since_open = False
        self.separator_end = -1
        self._new_group()
        self.state: tuple[Entry, Span] | None = None

    def _new_group(self) -> None:
        self.group: list[Mention] = []
        self.group_has_state = False
        self.after_heading = False
        self.verb_since_structure = False
        self.separator_since_structure = False

    # Cues ------------------------------------------------------------------------------------------------------------

    def _look_ahead(self, entry: Entry, span: Span) -> None:
        if entry.denies_after:
            self.negation, self.named_since_cue = span, False
        if entry.doubts_after:
            self.doubt, self.named_since_cue = span, False
            if self.words[span[0]] == "versus" and self.open and self.open[-1].label == POSITIVE:
                self.open[-1].label, self.open[-1].cue = UNCERTAIN, span
        if entry.not_stated:
            self.silent = True

    def _ask(self) -> None:
        self.asked = self.open[-1:]
        self.verb_since_open = False

    def _answer(self) -> None:
        """Let a cue without a finding of its own speak of the one before the colon: "Effusion: no."."""
        cue = self.negation or self.doubt
        if cue and not self.named_since_cue:
            for mention in self.asked:
                mention.label, mention.cue = NEGATIVE if self.negation else UNCERTAIN, cue

    def _look_back(self, entry: Entry, span: Span) -> bool:
        """Let a cue act on the findings before it; False where there are none, so that it may act ahead."""
        if not self.open:
            return False
        if entry.unstates_before:
            for mention in self.open:
                mention.label = BLANK
            return True
        if not (entry.denies_before or entry.doubts_before):
            return False
        targets = [mention for mention in self.open if mention.label != NEGATIVE]
        if entry.doubts_before:
            targets = targets or self.open[-1:]
        for mention in targets:
            mention.label = NEGATIVE if entry.denies_before else UNCERTAIN
            mention.cue = span
        self._verb()
        return bool(targets)

    def _verb(self) -> None:
        if self.open:
            self.verb_since_open = True
        if self.group:
            self.verb_since_structure = True
        if self.named_since_cue and self.negation:
            self.negation, self.dropped = None, self.negation

    def _separate(self, stop: int) -> None:
        self.separator_end = stop
        self.dropped = None
        self.separator_since_structure = True
        if self.verb_since_open:
            self.open, self.verb_since_open = [], False
            self.doubt = None
        if self.words[stop - 1] == "with" and self.named_since_cue and self.negation:
            # "removal of the tube with left atelectasis": what came of a change is not part of it.
            changes = _CHANGES.intersection(self.words[slice(*self.negation)])
            self.negation = None if changes else self.negation
        # "heart enlarged, mediastinum stable": the state belonged to what stood before it.
        if self.group_has_state and self.group and self.state and self.state[1][0] >= self.group[-1].span[1]:
            self.state = None

    def _alternate(self) -> None:
        """Go on with "or": either finding may be there, and "no effusion is seen or pneumothorax" denies both."""
        self.either = self.open[-1] if self.open else None
        self.negation = self.negation or self.dropped

    def _affirm(self, start: int) -> None:
        """End the scopes at "..., mild ...": a new statement, not one more item of a list."""
        while start > self.separator_end and start > 0 and self.words[start - 1] in _FILLERS:
            start -= 1
        if start == self.separator_end and self.named_since_cue:
            self.negation = self.doubt = None
            self.open = []

    # Statements ------------------------------------------------------------------------------------------------------

    def _finding(self, condition: int, label: int, span: Span) -> None:
        self.named_since_cue = True
        self.state = None
        if self.silent:
            return
        cue, hint = span, label == UNCERTAIN
        if self.negation:
            label, cue = NEGATIVE, self.negation
        elif self.doubt:
            label, cue = UNCERTAIN, self.doubt
        mention = Mention(condition, label, span, cue, hint=hint)
        if (other := self.either) is not None:
            self.either = None
            if other.label == POSITIVE and label == POSITIVE and other.condition != condition:
                either = (other.span[1], span[0])
                other.label = mention.label = UNCERTAIN
                other.cue = mention.cue = either
        self.open.append(mention)
        self.mentions.append(mention)

    def _structure(self, structure: str, span: Span) -> None:
        self.named_since_cue = True
        if self.group_has_state or self.after_heading:
            self._new_group()
        self.verb_since_structure = self.separator_since_structure = False
        mention = Mention(_CONDITION_OF[structure], BLANK, span, span, structure)
        self.group.append(mention)
        if mention.condition >= 0 and not self.silent:
            self.mentions.append(mention)
        if self.state is not None:
            self._say(mention, *self.state)

    def _state(self, entry: Entry, span: Span) -> None:
        if entry.state == NEGATIVE and self.verb_since_open:
            for mention in self.open:
                if mention.hint:
                    mention.label, mention.cue = NEGATIVE, span
        apart = self.separator_since_structure and (self.group_has_state or not self.verb_since_structure)
        if self.group and not apart:
            for mention in self.group:
                self._say(mention, entry, span)
            self.group_has_state = True
            # "normal heart size and mediastinum": without a verb between, a state may also belong to what follows.
            self.state = None if self.verb_since_structure or entry.only_before else (entry, span)
            return
        keeps = (
            self.state is not None
            and entry.state == BLANK
            and not (self.group and self.state[1][0] < self.group[-1].span[0])
        )
        if not keeps and not entry.only_before:
            self.state = (entry, span)

    def _use_waiting_state(self) -> None:
        """At the end of a clause a state that found no structure behind it belongs to those before it."""
        if self.state is not None and self.group:
            entry, span = self.state
            for mention in self.group:
                if mention.label == BLANK and span[0] > mention.span[0]:
                    self._say(mention, entry, span)

    def _say(self, mention: Mention, entry: Entry, span: Span) -> None:
        if mention.structure not in entry.speaks_of:
            return
        label, cue = entry.state, span
        if label in (POSITIVE, UNCERTAIN) and self.negation:
            label, cue = NEGATIVE, self.negation
        elif label == POSITIVE and self.doubt:
            label, cue = UNCERTAIN, self.doubt
        if mention.label != BLANK and mention.label != label:
            # "normal to mildly enlarged"
            label = UNCERTAIN
        assert label is not None
        mention.label, mention.cue = label, cue
