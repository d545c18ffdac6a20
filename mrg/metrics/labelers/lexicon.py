"""The phrase table as a tree of words: text -> tokens -> the phrases found, longest first."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from mrg.metrics.conditions import BLANK, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.labelers import phrases

# A number keeps its decimal point; line breaks end a sentence only before an empty line or an item of a list.
_TOKEN = re.compile(
    r"\d+\.\d+|(?<!\w)\.\d+|\bvs\.|[^\W_]+|[.!?;:,]|\n[^\S\n]*\n|\n[^\S\n]*(?=\d+[.)](?!\d)|[-*•])", re.IGNORECASE
)
_WORDS = {variant: word for word, variants in phrases.SPELLINGS.items() for variant in variants.split()}
_STATE_LABELS = {
    "enlarged": POSITIVE,
    "widened": POSITIVE,
    "increased": POSITIVE,
    "blunted": UNCERTAIN,
    "borderline": UNCERTAIN,
    "normal": NEGATIVE,
    "clear": NEGATIVE,
    "unchanged": BLANK,
}
_ROLES = {
    "denies_after": phrases.NEGATION_BEFORE,
    "denies_before": phrases.NEGATION_AFTER,
    "doubts_after": phrases.UNCERTAINTY_BEFORE,
    "doubts_before": phrases.UNCERTAINTY_AFTER,
    "not_stated": phrases.NOT_STATED,
    "unstates_before": phrases.NOT_STATED_AFTER,
    "clause_end": phrases.CLAUSE_END,
    "cause": phrases.CAUSE,
    "verb": phrases.VERBS,
    "affirms": phrases.AFFIRMATION,
    "separator": ",, and, with, plus",
    "alternative": "or",
}


@dataclasses.dataclass
class Entry:
    """All that one phrase can mean; most phrases have one meaning, a phrase of `NOTHING` has none.

    Args:
        findings: Pairs of condition index and label.
        structure: A key of `phrases.ANATOMY`.
        state: The label that the state gives to a structure, or None where the phrase is no state.
        speaks_of: The structures that the state can be said of.
        only_before: The state can be said only of structures before it ("is larger").
        sentence_end: The token is a full stop or its like.
    """

    findings: tuple[tuple[int, int], ...] = ()
    structure: str = ""
    state: int | None = None
    speaks_of: frozenset[str] = frozenset()
    only_before: bool = False
    denies_after: bool = False
    denies_before: bool = False
    doubts_after: bool = False
    doubts_before: bool = False
    not_stated: bool = False
    unstates_before: bool = False
    clause_end: bool = False
    cause: bool = False
    verb: bool = False
    affirms: bool = False
    separator: bool = False
    alternative: bool = False
    sentence_end: bool = False


@dataclasses.dataclass
class Tokens:
    """A text cut into words and signs.

    Args:
        words: Small letters, spellings replaced.
        spans: First character of each and one past its last, in the text as given.
    """

    words: list[str]
    spans: list[tuple[int, int]]


def tokenize(text: str) -> Tokens:
    """Cut a text into words and the signs that matter to scopes."""
    words, spans = [], []
    for match in _TOKEN.finditer(text):
        word = match.group().lower()
        words.append(_WORDS.get(word, word))
        spans.append(match.span())
    return Tokens(words, spans)


def _phrases(table: str) -> list[tuple[str, ...]]:
    """Split a table at commas and line ends; `,,` stands for the comma itself."""
    table = table.replace(",,", "\0,").replace("\n", ",")
    items = [tuple(_WORDS.get(word, word) for word in item.split()) for item in table.split(",")]
    return [tuple("," if word == "\0" else word for word in item) for item in items if item]


class Lexicon:
    """Looks up phrases in a list of words."""

    def __init__(self) -> None:
        # A node maps a word to the next node and "" to the entry that ends here.
        self._tree: dict[str, Any] = {}
        for label, tables in ((POSITIVE, phrases.FINDINGS), (UNCERTAIN, phrases.UNCERTAIN_FINDINGS)):
            for condition, table in tables.items():
                for phrase in _phrases(table):
                    self._entry(phrase).findings += ((CONDITIONS.index(condition), label),)
        for structure, table in phrases.ANATOMY.items():
            for phrase in _phrases(table):
                self._entry(phrase).structure = structure
        verbs = set(_phrases(phrases.VERBS))
        for state, (structures, table) in phrases.STATES.items():
            for phrase in _phrases(table):
                entry = self._entry(phrase)
                entry.state = _STATE_LABELS[state]
                entry.speaks_of |= frozenset(structures.split())
                entry.only_before = (phrase[0],) in verbs
        for role, table in _ROLES.items():
            for phrase in _phrases(table):
                setattr(self._entry(phrase), role, True)
        for phrase in _phrases(phrases.NOTHING):
            self._entry(phrase)
        for sign in ".!?":
            self._entry((sign,)).sentence_end = True
        for sign in ";:":
            self._entry((sign,)).clause_end = True

    def _entry(self, phrase: tuple[str, ...]) -> Entry:
        node = self._tree
        for word in phrase:
            node = node.setdefault(word, {})
        entry: Entry = node.setdefault("", Entry())
        return entry

    _LINE = Entry(sentence_end=True)

    def find(self, words: list[str]) -> list[tuple[Entry, int, int]]:
        """The phrases of a text from left to right without overlap: entry, first token, one past the last token."""
        found = []
        tree, num_words, start = self._tree, len(words), 0
        while start < num_words:
            node = tree.get(words[start])
            if node is None:
                if words[start][0] == "\n":
                    found.append((self._LINE, start, start + 1))
                start += 1
                continue
            best, stop = node.get(""), start + 1
            for position in range(start + 1, num_words):
                node = node.get(words[position])
                if node is None:
                    break
                entry = node.get("")
                if entry is not None:
                    best, stop = entry, position + 1
            if best is not None:
                found.append((best, start, stop))
            start = stop
        return found
