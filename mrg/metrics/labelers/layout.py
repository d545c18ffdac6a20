"""Normalization of Unicode, Markdown, HTML and lists, so that labels depend on words and not on their form.

The plain text has the same words in the same order. Four characters mark where the layout separates statements: `HARD`
starts a new line or list item, `SOFT` may start one, `ITEM` separates two statements on one line (a dash, a bar), and a
newline is a line wrap, that is, white space. Work is linear in the length of the text.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Collection, Sequence

ITEM, HARD, SOFT = "\x1d", "\x1e", "\x1f"

# Reports of plain sentences on one line have none of these and are returned unchanged.
_MARKS = re.compile(r"[^ -~]|[*_#<|`~]")
_DASHES = (" - ", " / ", " + ", "--")
_LISTED = re.compile(r"(?:^|[ (])(?:\d{1,2}|[a-hA-H])\)")
_EXTRA = {
    **dict.fromkeys("\u2022\u2023\u25e6\u2219\u00b7\u2027\u2043\u30fb\uff65\u2a00\u2981", HARD),
    **dict.fromkeys("\u2014\u2015\u2e3a\u2e3b", f" {ITEM} "),
    **dict.fromkeys("\u2013\u2010\u2011\u2012\u2212\u02d7\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2018\u2019\u02bc\u2032\u201b\u00b4", "'"),
    **dict.fromkeys("\u3002\uff61\u0964\u06d4", ". "),
    **dict.fromkeys("\u3001\uff64\u060c", ", "),
    **dict.fromkeys("\u2029\x0b\x0c\x1c\x1d\x1e", HARD),
    **dict.fromkeys("\u2028\x85\r", "\n"),
    "\x1f": " ", "\t": " ", "|": ITEM, "\u00a6": ITEM, "\u2502": ITEM,
    "\u00e6": "ae", "\u0153": "oe", "\u00c6": "Ae", "\u0152": "Oe", "\u00df": "ss", "\u00f8": "o", "\u0142": "l",
}  # fmt: skip
_INVISIBLE = ("Mn", "Me", "Cf")


class _Characters(dict[int, str]):
    """Code point -> its plain form, computed at first use."""

    def __missing__(self, code: int) -> str:
        self[code] = plain = _plain(chr(code))
        return plain


def _plain(character: str) -> str:
    if character in _EXTRA:
        return _EXTRA[character]
    if " " <= character <= "~" or character == "\n":
        return character
    # Circled numbers, boxes, shapes, dingbats and arrows open the items of a list.
    if "\u2190" <= character <= "\u21ff" or "\u2460" <= character <= "\u249b" or "\u25a0" <= character <= "\u27bf":
        return HARD
    parts = unicodedata.normalize("NFKD", character)
    kept = "".join(_EXTRA.get(part, part) for part in parts if unicodedata.category(part) not in _INVISIBLE)
    return "".join(" " if unicodedata.category(part) in ("Cc", "Zs") else part for part in kept)


_CHARACTERS = _Characters()
_BREAK_TAG = re.compile(r"</?(?:br|p|div|li|ul|ol|tr|table|h[1-6])\b[^<>]{0,200}>", re.IGNORECASE)
_OTHER_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
_HYPHENATED = re.compile(r"(?<![^\W\d_])([^\W\d_]{1,30})-[ ]{0,8}\n[ ]{0,40}([^\W\d_]{1,30})")
_ITEM = r"[^a-zA-Z\n]{0,40}[a-zA-Z]"
_LINE_MARK = re.compile(
    rf"(?:^|(?<=[\n\x1e]))[ >]{{0,40}}(?:#{{1,6}}(?=[ \w])|[-*+](?=[ *_]|[^\W\d])|o(?= {_ITEM})"
    rf"|\(?(?:\d{{1,2}}|[a-zA-Z]|[ivx]{{2,4}})[.)](?=[A-Z]|[ *_]{_ITEM})|[-=*]{{3,80}}(?=[ ]{{0,40}}(?:\n|\Z)))"
)
_INLINE_MARK = re.compile(rf"(?<= )\(?(?:\d{{1,2}}|[a-hA-H])\)(?= {_ITEM})")
_EMPTY_LINES = re.compile(r"\n(?=[ ]{0,200}\n)")
_SPACED = re.compile(r"(?<= )(?:-{1,3}|/|\+)(?= +(\w?))")
_MARKUP = str.maketrans("*_`~#", "     ")
_NARROW = 40


def plain(text: str, words: Collection[str] = ()) -> tuple[str, Sequence[int] | None]:
    """Convert a text to plain form.

    Args:
        text: Original text.
        words: Words to join if a hyphen at the end of a line separates them.

    Returns:
        The plain text, and the position in `text` of each of its characters; None if all positions are unchanged.
    """
    if not _has_layout(text):
        return text, None
    source = text.replace("\r\n", " \n").replace("\u00ad\n", "-\n")
    result = source.translate(_CHARACTERS)
    places: Sequence[int] | None = None
    if len(result) != len(source) or not source.isascii():
        places = [place for place, character in enumerate(source) for _ in _CHARACTERS[ord(character)]]
    if "-" in result and "\n" in result:
        result, places = _join_hyphenated(result, places, words)
    if "<" in result:
        result = _BREAK_TAG.sub(lambda tag: HARD + " " * (len(tag[0]) - 1), result)
        result = _OTHER_TAG.sub(lambda tag: " " * len(tag[0]), result)
    result = _EMPTY_LINES.sub(HARD, result)
    result = _LINE_MARK.sub(lambda mark: HARD + " " * (len(mark[0]) - 1), result)
    result = _INLINE_MARK.sub(lambda mark: HARD + " " * (len(mark[0]) - 1), result)
    result = _SPACED.sub(_separator, result).translate(_MARKUP)
    return (_line_breaks(result) if "\n" in result else result), places


def _has_layout(text: str) -> bool:
    return (
        _MARKS.search(text) is not None
        or any(dash in text for dash in _DASHES)
        or (")" in text and _LISTED.search(text) is not None)
        or text.lstrip(" ").startswith(("-", "+", ">"))
    )


def _separator(mark: re.Match[str]) -> str:
    """A spaced slash or plus sign separates statements only before a capital letter, a spaced dash always."""
    return ITEM + " " * (len(mark[0]) - 1) if mark[0][0] == "-" or mark[1].isupper() else " "


def _join_hyphenated(
    text: str, places: Sequence[int] | None, words: Collection[str]
) -> tuple[str, Sequence[int] | None]:
    pieces, kept, end = [], [], 0
    for match in _HYPHENATED.finditer(text):
        if (match[1] + match[2]).lower() in words:
            pieces.append(text[end : match.end(1)])
            kept.append((end, match.end(1)))
            end = match.start(2)
    if not pieces:
        return text, places
    kept.append((end, len(text)))
    places = range(len(text)) if places is None else places
    return "".join([*pieces, text[end:]]), [place for start, stop in kept for place in places[start:stop]]


def _line_breaks(text: str) -> str:
    """Replace the line breaks that may start a statement by `SOFT`.

    In a text with upper and lower case, a statement starts with a capital letter. Otherwise a break is a line wrap if
    the next word would not have fitted on the line.
    """
    lines = text.split("\n")
    mixed = not (text.isupper() or text.islower())
    width = max(map(len, lines))
    result = [lines[0]]
    for before, line in itertools.pairwise(lines):
        follows = before.rstrip(" ")[-1:] not in ("", HARD) and line.lstrip(" ")[:1] != HARD
        first = line.split(maxsplit=1)[0] if follows and line and not line.isspace() else ""
        if mixed:
            starts = (first[:1].isupper() and first.strip("X.,;:") != "") or first[:1].isdigit()
        else:
            starts = width < _NARROW or len(before.rstrip()) + 1 + len(first) <= width
        result += [SOFT if first and starts else "\n", line]
    return "".join(result)


SKIPPED_SECTIONS = """
    indication, indications, history, clinical history, clinical information, clinical indication, clinical data,
    reason for exam, reason for the exam, reason for examination, reason for study, notification, comparison,
    comparisons, technique, examination, exam, procedure, views, wet read"""
"""Headings of sections that do not describe the image; skipped up to the next heading."""

READ_SECTIONS = (
    "findings, finding, impression, conclusion, report, chest, heart, lungs, pleura, bones, mediastinum, lines"
)
"""Headings of sections that are read."""


def _names(table: str) -> str:
    return "|".join(r"\s{1,9}".join(map(re.escape, name.split())) for name in table.replace("\n", " ").split(","))


# A name at the start of a sentence with a colon behind it, or alone on its line.
_HEADING = re.compile(
    rf"(?:^|(?P<stop>[.!?])|[\n{HARD}{SOFT}]) *(?P<name>(?P<skipped>{_names(SKIPPED_SECTIONS)})"
    rf"|{_names(READ_SECTIONS)}) *(?::|(?(stop)(?!)|(?=[{HARD}{SOFT}])))",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(rf"[.!?](?!\d)|{HARD}|\n *\n")
_SPACE = re.compile(rf"[\s:{HARD}{SOFT}]*")


def without_skipped_sections(text: str) -> str:
    """Replace the sections that do not describe the image by spaces, so that positions do not change.

    A skipped section ends at the next known heading, or, if no heading follows, at the end of its sentence, so
    that a report that starts with "Comparison: none." is still read.

    Args:
        text: A report in the plain form of `mrg.metrics.labelers.layout.plain`.
    """
    if ":" not in text and "\n" not in text and HARD not in text and SOFT not in text:
        return text
    headings = list(_HEADING.finditer(text))
    if not any(heading["skipped"] for heading in headings):
        return text
    pieces, end = [], 0
    for index, heading in enumerate(headings):
        if not heading["skipped"]:
            continue
        if index + 1 < len(headings):
            stop = headings[index + 1].start("name")
        else:
            start = _SPACE.match(text, heading.end())
            assert start is not None
            sentence_end = _SENTENCE_END.search(text, start.end())
            stop = sentence_end.end() if sentence_end else len(text)
        pieces += [text[end : heading.start("name")], " " * (stop - heading.start("name"))]
        end = stop
    return "".join([*pieces, text[end:]])
