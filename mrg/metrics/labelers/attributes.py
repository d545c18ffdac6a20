"""Side, place, severity and change of a finding, read from the words around it in the same sentence.

A word between two findings belongs to the second if it follows a comma, "and" or the like; otherwise to the first if it
follows a preposition or a verb ("opacity in the left base"), and else to the second. Findings listed without a word
between them share their side and place ("left effusion and atelectasis").
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from mrg.metrics.conditions import NEGATIVE
from mrg.metrics.labelers.layout import HARD, ITEM, SOFT
from mrg.metrics.labelers.lexicon import Mention, Span

SIDES: dict[str, str] = {
    "left": "left, left sided, lower left lung, upper left lung",
    "right": "right, right sided, lower right lung, upper right lung",
    "bilateral": """bilateral, bilaterally, both, bibasilar, bibasal, biapical, left and right, right and left,
        left greater than right, right greater than left, left more than right, right more than left""",
}
PLACES: dict[str, str] = {
    "upper": """upper lobe, upper lobes, upper lung, upper lungs, upper zone, upper zones, upper field, suprahilar,
        upper left lung, upper right lung""",
    "middle": "middle lobe, mid lung, midlung, mid lungs, midlungs, mid zone, middle zone, lingula, lingular",
    "lower": """lower lobe, lower lobes, lower lung, lower lungs, lower zone, lower zones, lower field, infrahilar,
        lower left lung, lower right lung""",
    "apical": "apical, apex, apices, biapical",
    "basal": "base, bases, basal, basilar, bibasilar, bibasal",
    "retrocardiac": "retrocardiac",
}
SEVERITIES: dict[str, str] = {
    "small": "small, smaller sized, tiny, trace, minimal, minimally, little",
    "mild": "mild, mildly, slight, slightly, subtle",
    "moderate": "moderate, moderately, moderate sized",
    "large": "large, massive, sizable",
    "severe": "severe, severely, marked, markedly, extensive",
}
CHANGES: dict[str, str] = {
    "new": "new, newly, interval development of, development of, developing, has developed, have developed",
    "larger": """increased, increasing, increase in, larger, worse, worsened, worsening, progressed, progression of,
        enlarging, more prominent, more conspicuous, more extensive, has grown""",
    "smaller": """decreased, decreasing, decrease in, smaller, improved, improving, improvement of, improvement in,
        resolving, less prominent, less conspicuous, partially resolved, partial resolution of, partial clearing of,
        nearly resolved, near complete resolution of, reduced, has improved""",
    "unchanged": """
        stable, unchanged, no change in, without significant change, without significant interval change, no
        significant change in, no interval change in, without change, no significant interval change in, not
        change, not significantly change, similar, persistent, persists, again, redemonstrated,
        redemonstration of, constant, not increased, not decreased, has not resolved, have not resolved, not
        resolved, has not cleared, have not cleared, not cleared""",
    "resolved": """resolved, has resolved, have resolved, cleared, has cleared, have cleared, no longer, disappeared,
        resolution of, clearing of, removed, removal of, completely resolved""",
}
ATTRIBUTES: dict[str, dict[str, str]] = {"side": SIDES, "place": PLACES, "severity": SEVERITIES, "change": CHANGES}
"""Attribute -> value -> phrases, written as in `phrases.py`."""

_IGNORED = """
    right heart, left heart, right ventricle, left ventricle, right atrium, left atrium, right atrial, left atrial,
    right ventricular, left ventricular, minimally displaced, compared to the left, compared to the right,
    than the left, than the right, upper limits, upper abdomen,
    upper abdominal, lower extremity, upper extremity, no new, small bowel, large bowel,
    heart base, base of the heart"""
_SEPARATORS = frozenset((",", "and", "with", "plus", "or", "but", ";", ":", "versus", "without", "no", ITEM, SOFT))
_CONNECTORS = frozenset((",", "and", "or"))  # "and/or" is two words
_BREAKS = frozenset((
    "in", "at", "of", "on", "within", "along", "near", "involving", "over", "overlying", "projecting", "is", "are",
    "was", "were", "has", "have", "appears", "appear", "remains", "remain", "to", "from", "which", "that", "than",
    "measuring",
))  # fmt: skip
_VERBS = frozenset((
    "may", "might", "could", "represent", "reflect", "suggest", "compatible", "consistent", "due", "is", "are", "favor",
))  # fmt: skip
_STEADY = frozenset(("stable", "unchanged", "new", "newly", "persistent", "again", "similar", "constant"))
# Words further away than this belong to something else.
_REACH = 40
_ENDS = frozenset((".", "!", "?", HARD))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding of a report with its attributes; None if the sentence does not state them.

    Args:
        condition: A name of `mrg.metrics.conditions.CONDITIONS`.
        label: POSITIVE or UNCERTAIN; NEGATIVE for a finding that has resolved.
        side: A key of `SIDES`.
        place: A key of `PLACES`.
        severity: A key of `SEVERITIES`.
        change: A key of `CHANGES`.
        start: First character of the words that name the finding.
        end: One past their last character.
        words: Words that state the attributes, in reading order.
    """

    condition: str
    label: int
    side: str | None
    place: str | None
    severity: str | None
    change: str | None
    start: int
    end: int
    words: tuple[str, ...]


@dataclasses.dataclass
class Hit:
    """A phrase of the table in a text; `kinds` is empty for a phrase without an attribute."""

    span: Span
    kinds: tuple[tuple[str, str], ...]


def _table() -> dict[str, list[tuple[tuple[str, ...], tuple[tuple[str, str], ...]]]]:
    phrases: dict[tuple[str, ...], tuple[tuple[str, str], ...]] = {}
    for kind, values in ATTRIBUTES.items():
        for value, table in values.items():
            for phrase in table.replace("\n", " ").split(","):
                words = tuple(phrase.split())
                phrases[words] = (*phrases.get(words, ()), (kind, value))
    for phrase in _IGNORED.replace("\n", " ").split(","):
        phrases[tuple(phrase.split())] = ()
    by_word: dict[str, list[tuple[tuple[str, ...], tuple[tuple[str, str], ...]]]] = {}
    for words in sorted(phrases, key=len, reverse=True):
        by_word.setdefault(words[0], []).append((words, phrases[words]))
    return by_word


_TABLE = _table()


def hits(words: Sequence[str]) -> list[Hit]:
    """The phrases of the table in a text, longest first, without overlap."""
    found, start = [], 0
    while start < len(words):
        for phrase, kinds in _TABLE.get(words[start], ()):
            if tuple(words[start : start + len(phrase)]) == phrase:
                found.append(Hit((start, start + len(phrase)), kinds))
                start += len(phrase)
                break
        else:
            start += 1
    return found


def attributes(words: Sequence[str], mentions: Sequence[Mention]) -> dict[Span, dict[str, tuple[str, Span]]]:
    """For each mention its attributes: attribute -> value and the tokens that state it.

    Args:
        words: The tokens of a text.
        mentions: The findings and structures in it.
    """
    spans = sorted({mention.span for mention in mentions if mention.structure != "other"})
    result: dict[Span, dict[str, tuple[str, Span]]] = {span: {} for span in spans}
    found = hits(words)
    ends = [place for place, word in enumerate(words) if word in _ENDS] + [len(words)]
    next_span = next_hit = 0
    for end in ends:
        sentence: list[Span] = []
        own: list[Hit] = []
        while next_span < len(spans) and spans[next_span][0] < end:
            sentence.append(spans[next_span])
            next_span += 1
        while next_hit < len(found) and found[next_hit].span[0] < end:
            own.append(found[next_hit])
            next_hit += 1
        if sentence:
            _assign(words, sentence, own, result)
            _share(words, sentence, result)
    changes = {hit.span[0]: hit for hit in found if hit.kinds and hit.kinds[0][0] == "change"}
    for mention in mentions:
        for place in range(*mention.cue) if mention.label == NEGATIVE else ():
            if place in changes and mention.span in result:  # one cue for all that it denies
                result[mention.span]["change"] = (changes[place].kinds[0][1], changes[place].span)
    return result


def _assign(
    words: Sequence[str], spans: Sequence[Span], found: Sequence[Hit], result: dict[Span, dict[str, tuple[str, Span]]]
) -> None:
    place = 0
    for i, hit in enumerate(found):
        kinds = _kinds(words, found, i)
        while place < len(spans) and spans[place][1] <= hit.span[0]:
            place += 1
        before = spans[place - 1] if place else None
        after = spans[place] if place < len(spans) else None
        # "left basilar opacity" may be one phrase of the table of findings, whose words still tell side and place.
        if after is not None and after[0] <= hit.span[0]:
            owner: Span | None = after
            kinds = tuple((kind, value) for kind, value in kinds if kind in ("side", "place"))
        else:
            owner = _owner(words, before, after, hit.span)
        if owner is None:
            continue
        if owner == after and words[hit.span[0]] == "increased":
            continue  # "increased markings" are many, not more than before
        for kind, value in kinds:
            known = result[owner].get(kind)
            if kind == "side" and known is not None and known[0] != value:
                value = "bilateral"
            result[owner][kind] = (value, hit.span)


def _owner(words: Sequence[str], before: Span | None, after: Span | None, hit: Span) -> Span | None:
    before = None if before is None or hit[0] - before[1] > _REACH else before
    after = None if after is None or after[0] - hit[1] > _REACH else after
    if after is None:
        return before
    if before is None:
        return None if "with" in words[hit[1] : after[0]] else after
    between = words[before[1] : after[0]]
    separators = [before[1] + i for i, word in enumerate(between) if word in _SEPARATORS]
    if separators:
        return before if hit[0] < separators[-1] else after
    apart = _BREAKS.intersection(words[before[1] : hit[0]]) or _VERBS.intersection(words[hit[1] : after[0]])
    return before if apart else after


def _kinds(words: Sequence[str], found: Sequence[Hit], i: int) -> tuple[tuple[str, str], ...]:
    """Attributes of a phrase; the degree of a change ("slightly worse") is not a severity."""
    hit = found[i]
    if not any(kind == "severity" for kind, _ in hit.kinds):
        return hit.kinds
    for other in found[max(i - 1, 0) : i + 2]:
        touches = hit.span[1] == other.span[0] or other.span[1] == hit.span[0]
        changes = any(kind == "change" for kind, _ in other.kinds) and words[other.span[0]] not in _STEADY
        if touches and changes:
            return ()
    return hit.kinds


def _share(words: Sequence[str], spans: Sequence[Span], result: dict[Span, dict[str, tuple[str, Span]]]) -> None:
    """Share side and place among the findings of a list, forwards and then backwards."""
    pairs = [(a, b) for a, b in itertools.pairwise(spans) if _listed(words[a[1] : min(b[0], a[1] + 4)], b[0] - a[1])]
    for ordered in (pairs, [(b, a) for a, b in reversed(pairs)]):
        for giver, taker in ordered:
            if not {"side", "place"} & result[taker].keys():
                result[taker] |= {kind: value for kind, value in result[giver].items() if kind in ("side", "place")}


def _listed(between: Sequence[str], length: int) -> bool:
    """Whether two findings are items of one list: "scarring or subsegmental atelectasis"."""
    listed = length == 0 or (bool(_CONNECTORS.intersection(between)) and length <= 3)
    return listed and not (_BREAKS | _VERBS).intersection(between) and "with" not in between


def relevant(label: int, read: dict[str, tuple[str, Span]]) -> dict[str, tuple[str, Span]] | None:
    """The relevant attributes: all of a stated finding, and those of a denied one only if it has resolved."""
    if label != NEGATIVE:
        return read
    return read if "change" in read and read["change"][0] == "resolved" else None
