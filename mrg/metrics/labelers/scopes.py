"""One pass over the phrases of a text: which findings are asserted, denied or uncertain (after NegEx, Chapman 2001).

There are two kinds of statements. A finding ("effusion") is asserted by its name unless a cue denies or hedges it. A
structure ("heart size") has no label without a state ("normal", "enlarged") before or after it.

A cue applies to the findings after it up to the end of its clause, or to the findings before it back to the start of
the clause. A clause ends at a full stop, at words such as "but", and, after a verb, at the next comma or "and": "no
effusion is seen, mild cardiomegaly" denies only the effusion.
"""

from __future__ import annotations

from mrg.metrics.conditions import BLANK, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.labelers.layout import HARD
from mrg.metrics.labelers.lexicon import OTHER, Entry, Lexicon, Mention, Span

_CHANGES = frozenset(("removal", "resolution", "clearing"))
_FILLERS = frozenset(("a", "an", "the", "some", "also"))
# After such a word, and before one of the others, a line break does not end a sentence.
_OPENS = frozenset((
    ",", ":", "or", "and", "nor", "with", "of", "in", "on", "at", "to", "the", "a", "an", "no", "without", "not", "by",
    "for", "is", "are", "was", "were", "than", "above", "below", "over", "under", "about", "from", "between", "since",
))  # fmt: skip
_CONTINUES = frozenset((",", "or", "and", "nor", "with", "of", "is", "are", "was", "were", "than"))
_LESION = CONDITIONS.index("Lung Lesion")
_SHOWING = frozenset(("show", "shows", "demonstrate", "demonstrates", "reveal", "reveals"))
# Maximum number of findings in a list; earlier ones are not revisited, so that work is linear.
_REACH = 32


class Reader:
    """Reads phrases in order and collects `mentions`.

    Args:
        words: Tokens of a text; a line break that ends a sentence is replaced in place by `HARD`.
        lexicon: Source of the phrases.
    """

    def __init__(self, words: list[str], lexicon: Lexicon) -> None:
        self.words, self.lexicon = words, lexicon
        self.mentions: list[Mention] = []
        self.asked: list[Mention] = []
        self.either: Mention | None = None
        self._start_clause()

    def read(self, found: list[tuple[Entry, int, int]]) -> list[Mention]:
        """Read the phrases of a whole text and return its mentions."""
        for entry, start, stop in found:
            span = (start, stop)
            if entry.soft:
                if self._ends_line(start):
                    self.words[start] = HARD
                    self._end_clause()
            elif entry.colon and self._is_heading(start):
                self.after_heading = True
            elif entry.colon and self._is_question(start):
                self._ask()
            elif entry.sentence_end or entry.clause_end or (entry.cause and not self._doubted(start)):
                self._end_clause()
            elif entry.separator:
                self._separate(stop)
            elif entry.nothing:
                self.asked = []
            else:
                if entry.affirms:
                    self._affirm(start)
                if entry.alternative:
                    self._alternate()
                if not self._look_back(entry, span):
                    self._look_ahead(entry, span)
                if entry.state is not None:
                    self._state(entry, span)
                for structure in entry.structures:
                    self._structure(structure, span, structure == entry.structures[0])
                for condition, label in entry.findings:
                    self._finding(entry, condition, label, span)
                if entry.verb and not self._is_adjective(start):
                    if self.words[start] in _SHOWING and all(m.structure == "other" for m in self.group[-_REACH:]):
                        self._new_group()  # "views of the chest show an unchanged silhouette"
                    self._verb()
        self._end_clause()
        return self.mentions

    def _is_heading(self, start: int) -> bool:
        """Whether this is the colon of "Heart: normal in size", which does not separate structure and state."""
        if self.open or self.negation or self.doubt or self.state is not None or self.group_has_state:
            return False
        return bool(self.group) and self.group[-1].span[1] == start

    def _is_question(self, start: int) -> bool:
        """Whether this is the colon of "Effusion: none", after which one word can deny or hedge the finding."""
        bare = not (self.negation or self.doubt or self.silent)
        return bare and bool(self.open) and self.open[-1].span[1] == start

    def _ends_line(self, start: int) -> bool:
        """Whether this line break ends a sentence: something has been stated, and the words around it allow it."""
        if not 0 < start < len(self.words) - 1:
            return False
        cue = self.negation or self.doubt
        if self.silent:
            stated = self.named
        elif cue:
            stated = self.named_since_cue or start - cue[1] >= 2
        else:
            stated = bool(self.open) or (self.state is not None and start - self.state[1][1] >= 2)
        changed = self.verb_since_structure and self.words[start - 1].endswith("ed")  # "heart size has decreased"
        stated = (
            stated or changed or self.group_has_state or any(mention.label != BLANK for mention in self.group[-_REACH:])
        )
        return stated and self.words[start - 1] not in _OPENS and self.words[start + 1] not in _CONTINUES

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
        self.silent = self.earlier = False
        self.calcified: Span | None = None
        self.asked = []
        self.named = self.named_since_cue = False
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
                self.open[-1].doubt(span)
        if entry.not_stated:
            self.silent = True
        if entry.earlier:
            self.earlier = True
        if entry.calcified:
            self.calcified = span

    def _ask(self) -> None:
        self.asked, self.open = self.open[-1:], []
        self.verb_since_open = False

    def _answer(self) -> None:
        """Apply a cue without a finding of its own to the finding before the colon: "Effusion: no."."""
        cue = self.negation or self.doubt
        if cue and not self.named_since_cue:
            for mention in self.asked:
                if self.negation:
                    self._deny(mention, cue)
                else:
                    mention.doubt(cue)

    def _look_back(self, entry: Entry, span: Span) -> bool:
        """Apply a cue to the findings before it; False if there are none, so that it may apply to later ones."""
        found = (self.open or self.asked)[-_REACH:]
        if entry.denies_before:
            for mention in self.group[-_REACH:]:
                if mention.label in (POSITIVE, UNCERTAIN) and mention.cue[1] == span[0]:  # "blunting has cleared"
                    self._deny(mention, span)
        if not found or (not self.open and (entry.denies_after or entry.doubts_after)):
            return False  # "Mass: resolved." is answered at the end, "Mass: resolved effusion." is not
        if entry.unstates_before:
            for mention in found:
                mention.label = BLANK
            return True
        doubts = (
            entry.doubts_before
            or (entry.doubts_earlier and self.earlier)
            or (entry.doubts_adjacent and found[-1].span[1] == span[0])
        )
        if not (entry.denies_before or doubts):
            return False
        targets = [mention for mention in found if mention.label != NEGATIVE]
        if doubts:
            targets = targets or found[-1:]
        for mention in targets:
            if entry.denies_before:
                self._deny(mention, span)
            else:
                mention.doubt(span)
        self._verb()
        return bool(targets)

    def _deny(self, mention: Mention, cue: Span) -> None:
        mention.label, mention.cue = NEGATIVE, cue
        if mention.denied_as is not None:
            mention.condition = mention.denied_as
            mention.label = NEGATIVE if self.words[cue[0] : cue[1]] == ["no"] else BLANK

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
        """Handle "or": either finding may be present, and "no effusion is seen or pneumothorax" denies both."""
        self.either = self.open[-1] if self.open else None
        self.negation = self.negation or self.dropped

    def _affirm(self, start: int) -> None:
        """End the scopes at "..., mild ...", which starts a new statement instead of a list item."""
        while start > self.separator_end and start > 0 and self.words[start - 1] in _FILLERS:
            start -= 1
        if start == self.separator_end and self.named_since_cue:
            self.negation = self.doubt = None
            self.open = []

    # Statements ------------------------------------------------------------------------------------------------------

    def _finding(self, entry: Entry, condition: int, label: int, span: Span) -> None:
        self.named = self.named_since_cue = True
        self.asked = []
        self.state = None
        if self.silent:
            return
        if condition == _LESION and self.calcified and self.calcified[0] > self.separator_end:
            condition = OTHER
        mention = Mention(condition, label, span, span, "", label == UNCERTAIN, entry.denied_as, entry.certain)
        if self.negation:
            self._deny(mention, self.negation)
        elif self.doubt:
            mention.doubt(self.doubt)
        if (other := self.either) is not None:
            self.either = None
            if other.label == POSITIVE and mention.label == POSITIVE and other.condition != condition:
                either = (other.span[1], span[0])
                other.doubt(either)
                mention.doubt(either)
        self.open.append(mention)
        self.mentions.append(mention)

    def _structure(self, structure: str, span: Span, first: bool) -> None:
        self.named = self.named_since_cue = True
        self.asked = []
        if first and (self.group_has_state or self.after_heading):
            self._new_group()
        self.verb_since_structure = self.separator_since_structure = False
        mention = Mention(self.lexicon.condition_of[structure], BLANK, span, span, structure)
        self.group.append(mention)
        if mention.condition >= 0 and not self.silent:
            self.mentions.append(mention)
        if self.state is not None and structure != "outline":
            self._say(mention, *self.state)

    def _state(self, entry: Entry, span: Span) -> None:
        if entry.state == NEGATIVE and self.verb_since_open:
            for mention in self.open[-_REACH:]:
                if mention.hint:
                    mention.label, mention.cue = self.lexicon.normal_hint, span
        apart = self.separator_since_structure and (self.group_has_state or not self.verb_since_structure)
        if self.group and not apart:
            for mention in self.group[-_REACH:]:
                self._say(mention, entry, span)
            self.group_has_state = True
            # "normal heart size and mediastinum": without a verb between, a state may also belong to what follows.
            self.state = None if self.verb_since_structure or entry.only_before else (entry, span)
            return
        keeps = (
            self.state is not None
            and (entry.state == BLANK or entry.weak)
            and not (self.group and self.state[1][0] < self.group[-1].span[0])
        )
        if not keeps and not entry.only_before:
            self.state = (entry, span)

    def _use_waiting_state(self) -> None:
        """At the end of a clause, apply a state without a structure after it to the structures before it."""
        if self.state is not None and self.group:
            entry, span = self.state
            for mention in self.group[-_REACH:]:
                if (mention.label == BLANK or mention.weak) and span[0] > mention.span[0]:
                    self._say(mention, entry, span)

    def _say(self, mention: Mention, entry: Entry, span: Span) -> None:
        if mention.structure not in entry.speaks_of or (entry.weak and mention.label != BLANK):
            return
        label, cue = entry.state, span
        if label in (POSITIVE, UNCERTAIN) and self.negation and not entry.weak:
            label, cue = NEGATIVE, self.negation
        elif label == POSITIVE and self.doubt:
            label, cue = UNCERTAIN, self.doubt
        if mention.label not in (BLANK, label) and not mention.weak:
            # "normal to mildly enlarged"
            label = UNCERTAIN
        assert label is not None
        mention.label, mention.cue, mention.weak = label, cue, entry.weak
