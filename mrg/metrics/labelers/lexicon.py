"""The phrase table as a tree of words: text -> tokens -> the phrases found, longest first, and what they mention."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from mrg.metrics.conditions import BLANK, CONDITIONS, NEGATIVE, NUM_CONDITIONS, POSITIVE, UNCERTAIN
from mrg.metrics.labelers import chexbert_phrases, cues, phrases
from mrg.metrics.labelers.layout import HARD, ITEM, SOFT, plain, without_skipped_sections

_TOKEN = re.compile(
    rf"\d+\.\d+|(?<!\w)\.\d+|\bvs\.|[^\W_]+|[.!?]+|{HARD}[\s{HARD}{SOFT}]*|[;:,{ITEM}{SOFT}]", re.IGNORECASE
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
_STOPS = frozenset((".", "!", "?", HARD))
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
"""Index of what is a finding and none of the conditions: it has no label, but a report that has one is not normal."""

_CONDITION_OF = {
    "heart": CONDITIONS.index("Cardiomegaly"),
    "mediastinum": CONDITIONS.index("Enlarged Cardiomediastinum"),
    "outline": CONDITIONS.index("Enlarged Cardiomediastinum"),
    "angle": CONDITIONS.index("Pleural Effusion"),
    "pleura": CONDITIONS.index("Pleural Effusion"),
    "other": -1,
}


@dataclasses.dataclass
class Entry:
    """All that one phrase can mean; most phrases have one meaning, a phrase of `NOTHING` has none.

    Args:
        findings: Pairs of condition index and label.
        denied_as: Index of the condition that a denial of the finding denies; None where it is the finding's own.
        certain: A doubt does not make the finding uncertain.
        structures: Keys of `phrases.ANATOMY`.
        state: The label that the state gives to a structure, or None where the phrase is no state.
        weak: The state gives its label only to a structure of which nothing else is said ("stable").
        speaks_of: The structures that the state can be said of.
        only_before: The state can be said only of structures before it ("is larger").
        sentence_end: The token is a full stop or its like.
        colon: The token can part a name from what is said of it: a colon or a dash.
        soft: The token is a line break that may end a sentence.
        nothing: The phrase means nothing; it is in the table so that its words are not read one by one.
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
    """A text cut into words and signs.

    Args:
        words: Small letters, spellings replaced.
        spans: First character of each and one past its last, in the text as given.
    """

    words: list[str]
    spans: list[tuple[int, int]]


def _phrases(table: str) -> list[tuple[str, ...]]:
    """Split a table at commas and line ends; `,,` stands for the comma itself."""
    table = table.replace(",,", "\0,").replace("\n", ",")
    items = [tuple(_WORDS.get(word, word) for word in item.split()) for item in table.split(",")]
    return [tuple("," if word == "\0" else word for word in item) for item in items if item]


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
        """Cut a text into words and the signs that matter to scopes, without the sections that are not read."""
        clean, places = plain(text, self.words)
        words, spans = [], []
        for match in _TOKEN.finditer(without_skipped_sections(clean)):
            word = match.group().lower()
            if word[0] in _STOPS and not word[-1].isdigit():
                word = word[0]
            words.append(_WORDS.get(word, word))
            spans.append(match.span())
        if places is not None:
            spans = [(places[start], places[stop - 1] + 1) for start, stop in spans]
        return Tokens(words, spans)

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
            for position in range(start + 1, num_words):
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
