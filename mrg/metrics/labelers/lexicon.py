"""The phrase table as a tree of words: text -> tokens -> the phrases found, longest first, and what they mention."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mrg.metrics.conditions import BLANK, CONDITIONS, NEGATIVE, NUM_CONDITIONS, POSITIVE, UNCERTAIN
from mrg.metrics.labelers import chexbert_phrases, cues, phrases
from mrg.metrics.labelers.layout import HARD, ITEM, SOFT, plain, without_skipped_sections

_TOKEN = re.compile(
    rf"\d+\.\d+|(?<!\w)\.\d+|\bvs\.|[^\W_]+|[.!?]+|{HARD}[\s{HARD}{SOFT}]*|{ITEM}(?: *{ITEM})*|[;:,{SOFT}]"
)
_WORDS = {variant: word for word, variants in phrases.SPELLINGS.items() for variant in variants.split()}
_STATE_LABELS = {
    "abnormal": POSITIVE,
    "enlarged": POSITIVE,
    "widened": POSITIVE,
    "increased": POSITIVE,
    "blunted": UNCERTAIN,
    "borderline": UNCERTAIN,
    "normal": NEGATIVE,
    "clear": NEGATIVE,
    "unchanged": BLANK,
}
_SIGNS = frozenset((".", "!", "?", HARD, ITEM))
# Most tokens of one phrase, skipped words included.
_LONGEST = 20
_INSIDE = frozenset(cues.INSIDE.replace("\n", " ").replace(",", " ").split())
_ROLES = {
    "denies_after": cues.NEGATION_BEFORE,
    "denies_before": cues.NEGATION_AFTER,
    "doubts_after": cues.UNCERTAINTY_BEFORE,
    "doubts_before": cues.UNCERTAINTY_AFTER,
    "doubts_adjacent": cues.UNCERTAINTY_ADJACENT,
    "doubts_earlier": cues.UNCERTAINTY_OF_EARLIER,
    "earlier": cues.EARLIER,
    "not_stated": cues.NOT_STATED,
    "unstates_before": cues.NOT_STATED_AFTER,
    "clause_end": cues.CLAUSE_END,
    "cause": cues.CAUSE,
    "verb": cues.VERBS,
    "affirms": cues.AFFIRMATION,
    "separator": ",, and, with, plus",
    "alternative": "or",
}


OTHER = NUM_CONDITIONS
"""Index of findings outside the conditions: they have no label, but a report that asserts one is not normal."""

_CONDITION_OF = {
    "heart": CONDITIONS.index("Cardiomegaly"),
    "mediastinum": CONDITIONS.index("Enlarged Cardiomediastinum"),
    "outline": CONDITIONS.index("Enlarged Cardiomediastinum"),
    "angle": CONDITIONS.index("Pleural Effusion"),
    "pleura": CONDITIONS.index("Pleural Effusion"),
    "other": -1,
}


@dataclasses.dataclass(slots=True)
class Entry:
    """The meanings of a phrase: usually one; none for a phrase of `NOTHING`.

    Args:
        findings: Pairs of condition index and label.
        denied_as: Index of the condition that a denial of the finding denies; None if it is the finding's own.
        certain: Whether the finding remains positive when hedged.
        structures: Keys of `phrases.ANATOMY`.
        state: Label that the state gives to a structure, or None if the phrase is not a state.
        weak: Whether the state applies only to a structure without any other state ("stable").
        speaks_of: Structures that the state applies to.
        only_before: Whether the state applies only to structures before it ("is larger").
        sentence_end: Whether the token ends a sentence.
        colon: Whether the token, a colon or a dash, can separate a name from a statement about it.
        soft: Whether the token is a line break that may end a sentence.
        nothing: Whether the phrase has no meaning and only prevents reading its words separately.
    """

    findings: tuple[tuple[int, int], ...] = ()
    denied_as: int | None = None
    certain: bool = False
    structures: tuple[str, ...] = ()
    state: int | None = None
    weak: bool = False
    speaks_of: frozenset[str] = frozenset()
    only_before: bool = False
    denies_after: bool = False
    denies_before: bool = False
    doubts_after: bool = False
    doubts_before: bool = False
    doubts_adjacent: bool = False
    doubts_earlier: bool = False
    earlier: bool = False
    calcified: bool = False
    not_stated: bool = False
    unstates_before: bool = False
    clause_end: bool = False
    cause: bool = False
    verb: bool = False
    affirms: bool = False
    separator: bool = False
    alternative: bool = False
    sentence_end: bool = False
    colon: bool = False
    soft: bool = False
    nothing: bool = False


@dataclasses.dataclass
class Tokens:
    """The words and punctuation marks of a text.

    Args:
        words: Words in lower case with normalized spelling.
        spans: First character of each and one past its last, in the original text.
    """

    words: list[str]
    spans: list[tuple[int, int]]


def _phrases(table: str) -> list[tuple[str, ...]]:
    """Split a table at commas and line ends; `,,` stands for the comma itself."""
    table = table.replace(",,", "\0,").replace("\n", ",")
    items = [tuple(_WORDS.get(word, word) for word in item.split()) for item in table.split(",")]
    return [tuple("," if word == "\0" else word for word in item) for item in items if item]


def _words(part: str) -> list[str]:
    spelled = _WORDS.get
    return [
        spelled(word, word) if word[0] not in _SIGNS else word if word[-1].isdigit() else word[0]
        for word in _TOKEN.findall(part)
    ]


class Lexicon:
    """Looks up phrases in a list of words.

    Args:
        convention: `"chexbert"` or `"plain"`, see `mrg.metrics.labelers.rules`.
    """

    def __init__(self, convention: str = "chexbert") -> None:
        # A node maps a word to the next node and "" to the entry that ends here.
        self._tree: dict[str, Any] = {}
        self.condition_of = dict(_CONDITION_OF)
        # The label of a hint ("engorgement") of which "normal" is said.
        self.normal_hint = NEGATIVE
        self._add_findings()
        self._add_cues()
        if convention == "chexbert":
            self._follow_chexbert()
        self.words = frozenset(_words_of(self._tree)) | frozenset(_WORDS)

    def tokens(self, text: str) -> Tokens:
        """Split a text into words and the punctuation that affects scopes, without skipped sections."""
        part, places = self._read_part(text)
        spans = [match.span() for match in _TOKEN.finditer(part)]
        if places is not None:
            spans = [(places[start], places[stop - 1] + 1) for start, stop in spans]
        return Tokens(_words(part), spans)

    def word_list(self, text: str) -> list[str]:
        """The words of `tokens` without their spans."""
        return _words(self._read_part(text)[0])

    def _read_part(self, text: str) -> tuple[str, Sequence[int] | None]:
        """Sections that are read, in lower case; no character that `plain` leaves is longer in lower case."""
        clean, places = plain(text, self.words)
        return without_skipped_sections(clean).lower(), places

    def _add_findings(self) -> None:
        for label, tables in ((POSITIVE, phrases.FINDINGS), (UNCERTAIN, phrases.UNCERTAIN_FINDINGS)):
            for condition, table in tables.items():
                for phrase in _phrases(table):
                    self._entry(phrase).findings += ((CONDITIONS.index(condition), label),)
        for structure, table in phrases.ANATOMY.items():
            for phrase in _phrases(table):
                self._entry(phrase).structures = (structure,)
        for state, (structures, table) in phrases.STATES.items():
            self._add_state(state, structures, table)

    def _add_state(self, state: str, structures: str, table: str) -> None:
        verbs = set(_phrases(cues.VERBS))
        for phrase in _phrases(table):
            entry = self._entry(phrase)
            entry.state = _STATE_LABELS[state]
            entry.weak = state == "unchanged"
            entry.speaks_of |= frozenset(structures.split())
            entry.only_before = (phrase[0],) in verbs

    def _add_cues(self) -> None:
        for role, table in _ROLES.items():
            for phrase in _phrases(table):
                setattr(self._entry(phrase), role, True)
        for phrase in _phrases(phrases.NOTHING):
            entry = self._entry(phrase)
            entry.nothing = entry == Entry()
        for sign in (".", "!", "?", HARD):
            self._entry((sign,)).sentence_end = True
        for sign in (";", ":", ITEM):
            self._entry((sign,)).clause_end = True
        for sign in (":", ITEM):
            self._entry((sign,)).colon = True
        self._entry((SOFT,)).soft = True

    def _follow_chexbert(self) -> None:
        """Read as CheXbert does where its labels of real reports differ from the plain reading."""
        for phrase in _phrases(chexbert_phrases.OTHER_FINDINGS):
            entry = self._entry(phrase)
            entry.findings, entry.nothing = ((OTHER, POSITIVE),), False
        for condition, table in chexbert_phrases.FINDINGS.items():
            for phrase in _phrases(table):
                self._entry(phrase).findings = ((CONDITIONS.index(condition), POSITIVE),)
        for phrase in _phrases(chexbert_phrases.UNSTATED):
            self._entry(phrase).findings = ()
        for condition, table in chexbert_phrases.DENIED_AS.items():
            for phrase in _phrases(table):
                self._entry(phrase).denied_as = CONDITIONS.index(condition)
        for phrase in _phrases(chexbert_phrases.CERTAIN):
            self._entry(phrase).certain = True
        for phrase in _phrases(chexbert_phrases.CALCIFIED):
            self._entry(phrase).calcified = True
        for phrase in _phrases(chexbert_phrases.OUTLINES):
            self._entry(phrase).structures += ("outline",)
        for state, (structures, table) in chexbert_phrases.STATES.items():
            self._add_state(state, structures, table)
        for phrase in _phrases(phrases.STATES["unchanged"][1]):
            entry = self._entry(phrase)
            entry.state, entry.speaks_of = UNCERTAIN, frozenset(("heart", "mediastinum"))
        self.condition_of |= {"angle": OTHER, "pleura": OTHER, "other": OTHER}
        self.normal_hint = BLANK

    def _entry(self, phrase: tuple[str, ...]) -> Entry:
        node = self._tree
        for word in phrase:
            node = node.setdefault(word, {})
        entry: Entry = node.setdefault("", Entry())
        return entry

    def find(self, words: list[str]) -> list[tuple[Entry, int, int]]:
        """The phrases of a text from left to right without overlap: entry, first token, one past the last token.

        A word such as "completely" inside a phrase is skipped where the table has no phrase with it.
        """
        found = []
        tree, num_words, start = self._tree, len(words), 0
        while start < num_words:
            node = tree.get(words[start])
            if node is None:
                start += 1
                continue
            best, stop = node.get(""), start + 1
            for position in range(start + 1, min(num_words, start + _LONGEST)):
                word = words[position]
                following = node.get(word)
                if following is None:
                    if word in _INSIDE:
                        continue
                    break
                node = following
                entry = node.get("")
                if entry is not None:
                    best, stop = entry, position + 1
            if best is not None:
                found.append((best, start, stop))
            start = stop
        return found


def _words_of(tree: dict[str, Any]) -> Iterator[str]:
    for word, node in tree.items():
        if word:
            yield word
            yield from _words_of(node)


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
        denied_as: Index of the condition that a denial by "no" denies, see `Entry`.
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
