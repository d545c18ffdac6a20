"""The sections of a MIMIC-CXR report: free text under headers, most of them in capitals.

In two steps: split the text at its headers, then choose the findings, impression and indication. Follows the parser
published with the data set (github.com/MIT-LCP/mimic-cxr, Johnson et al., 2019) in what counts as a header, in using
the last of several sections with one name, in treating a joint section as the impression, and in falling back to the
last section, or its last paragraphs: of a report under unknown headers alone ("LUNGS:", "HEART:"), the other sections
are lost, which is counted. It differs where that parser loses other text; each difference is a rule in `RULES`, so that
it is counted, too:

- a header may be misspelled, in lower case, without a colon, or in the middle of a line;
- an unknown header within findings or impression ("LINES AND TUBES:") is part of their text;
- findings named as such take precedence over those named after the views ("CHEST, TWO VIEWS:");
- a preliminary reading is ignored if the final report follows;
- "NDICATION" is an indication; no study is excluded by its id; a report of one paragraph is used.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re

SOURCES = (
    "findings and impression",
    "findings alone",
    "impression alone",
    "joint section",
    "last paragraphs",
    "last section",
    "whole report",
    "empty",
)
"""Where the text of a report was found; each report has exactly one source."""

RULES = (
    "misspelled header",
    "lower case",
    "no colon",
    "within a line",
    "longer header",
    "view header",
    "subheading",
    "repeated section",
    "wet read",
    "addendum",
    "several unknown headers",
)
"""Rules that were applied to a report; each may have none or several."""

_SPELLINGS = {
    "findings": "findings, finding",
    "impression": "impression, impressions, conclusion, conclusions",
    "indication": "indication, indications, clinical indication, reason for exam, reason for examination",
    "history": "history, clinical history, patient history, clinical information",
    "comparison": "comparison, comparisons, comparison exam, comparison film, comparison study, reference exam",
    "technique": "technique, techniques",
    "examination": "examination, exam, type of examination, type of exam",
    "recommendations": "recommendation, recommendations, recommendation(s)",
    "notification": "notification, notifications",
    "wet read": "wet read, wetread, preliminary report",
    "addendum": "addendum, final addendum",
    "comment": "comment, comments",
    "date": "date",
}
_NAMES = {name: section for section, names in _SPELLINGS.items() for name in names.split(", ")}
_LONG_NAMES = [name for name in _NAMES if len(name) > 6]
_CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
# "Date:" or "Comment:" in lower case is more often text than a header.
_IN_LOWER_CASE = set(_SPELLINGS) - {"date", "comment", "recommendations", "notification"}
_ENDING = ("notification", "recommendations", "date", "comment", "addendum", "wet read")

_VIEWS = re.compile(
    r"chest|portable|\bribs\b|bone window|frontal (and|upright|semi)|\b(one|two|pa|ap|frontal|lateral) views?\b|"
    r"\b(pa|ap|lateral) and (pa|ap|lat)"
)
_HEADER = re.compile(
    r"^[ \t]*(?P<capitals>[A-Z][A-Z0-9 ()/,&'-]{1,60}?)[ \t]*[:;](?P<space>\s|$)?"
    r"|^[ \t]*(?P<alone>[A-Z][A-Z /]{4,30}?)[ \t]*$"
    r"|^[ \t]*(?P<small>[A-Za-z][A-Za-z /()]{2,40}?)[ \t]*:"
    r"|(?<=[.?!_])[ \t]+(?P<inline>[A-Z][A-Z /]{4,30}?):(?=\s)",
    re.MULTILINE,
)
_NOT_SPACE = re.compile(r"\S")
# The de-identification token `___` has three underscores and may be alone on a line.
_DIVIDER = re.compile(r"^[ \t]*(_{10,}|(?P<final>FINAL REPORT))[ \t]*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Sections:
    """The sections of a report, with white space folded to single spaces.

    Args:
        findings: Findings; empty if there are none.
        impression: Impression, or a joint section of findings and impression; empty if there is none.
        indication: Reason for the examination, or else the clinical history.
        body: Remaining text if there are neither findings nor impression; otherwise empty.
        source: One of `SOURCES`.
        rules: Applied rules, in the order of `RULES`.
    """

    findings: str
    impression: str
    indication: str
    body: str
    source: str
    rules: tuple[str, ...]


@dataclasses.dataclass
class _Part:
    """Text under one header; `name` is its section ("" if unknown), `how` the rule that recognized it.

    `first` is the place of its first character that is not white space, -1 before it is needed.
    """

    name: str
    how: str
    start: int
    text: str = ""
    final: bool = False
    first: int = -1


def parse_sections(report: str) -> Sections:
    """Split a report into sections."""
    text = report.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    parts, rules = _cut(text)
    final = [part for part in parts if part.final]
    if any(part.text and part.name in ("findings", "impression") for part in final) or (
        # If the final report is free text, a preliminary reading under headers must not be used instead.
        final and any(part.name == "wet read" for part in parts) and any(part.text for part in final)
    ):
        parts = final
    findings = _choose(parts, "findings", rules)
    impression = _choose(parts, "impression", rules)
    joint = any(part.name == "impression" and part.how == "joint" and part.text == impression for part in parts)
    body = ""
    if findings and impression:
        source = "findings and impression"
    elif findings:
        source = "findings alone"
    elif impression:
        source = "joint section" if joint else "impression alone"
    else:
        last, body, source = _body(parts)
        if any(part.text and part.how == "unknown header" and part is not last for part in parts):
            rules.add("several unknown headers")
    return Sections(
        findings=_fold(findings),
        impression=_fold(impression),
        indication=_fold(_last(parts, "indication") or _last(parts, "history")),
        body=_fold(body),
        source=source,
        rules=tuple(rule for rule in RULES if rule in rules),
    )


@functools.lru_cache(maxsize=4096)
def section_name(header: str) -> tuple[str, str]:
    """The section that a header names, and the rule that recognized it; ("", "") for an unknown header.

    Example:
        >>> section_name("REASON FOR EXAM"), section_name("NDICATION"), section_name("CHEST, TWO VIEWS")
        (('indication', ''), ('indication', 'misspelled header'), ('findings', 'view header'))
    """
    name = " ".join(header.lower().split()).strip(" ,-")
    if name in _NAMES:
        return _NAMES[name], ""
    if "finding" in name and "impression" in name:
        return "impression", "joint"
    # A sentence in capitals that mentions a history is not a header.
    if len(name.split()) <= 6:
        for section in _CONTAINED:
            if section in name:
                return section, "longer header"
    near = difflib.get_close_matches(name, _LONG_NAMES, n=1, cutoff=0.85)
    if near:
        return _NAMES[near[0]], "misspelled header"
    if _VIEWS.search(name):
        return "findings", "view header"
    return "", ""


def _cut(text: str) -> tuple[list[_Part], set[str]]:
    """Split at headers and dividers; also returns the applied rules."""
    marks = sorted([*_HEADER.finditer(text), *_DIVIDER.finditer(text)], key=lambda mark: (mark.start(), mark.end()))
    parts, rules, final = [_Part("", "", 0)], set(), False
    for mark in marks:
        last = parts[-1]
        if mark.start() < last.start:
            continue  # a divider was also matched as a header without a colon, or vice versa
        if mark.re is _DIVIDER:
            final = final or mark["final"] is not None
            name, how = "", ""
        else:
            found = _header(mark, text)
            if found is None:
                continue
            name, how = found
            if last.name in ("findings", "impression") and _is_subheading(how, text, last, mark.start()):
                rules.add("subheading")
                continue
            if last.name in ("wet read", "addendum") and how == "unknown header":
                continue
        last.text = text[last.start : mark.start()].strip()
        # An unknown header may be the first words of the report, so it is part of the text.
        parts.append(_Part(name, how, mark.start() if how == "unknown header" else mark.end(), final=final))
        rules |= {how, name} & set(RULES)
    parts[-1].text = text[parts[-1].start :].strip()
    return parts, rules


def _is_subheading(how: str, text: str, part: _Part, end: int) -> bool:
    """Whether a header within findings or impression is part of them: an unknown one, or a view after some text."""
    if how != "view header":
        return how == "unknown header"
    if part.first < 0:  # searched once, so that a blank of any length is not read again for each header
        found = _NOT_SPACE.search(text, part.start)
        part.first = found.start() if found else len(text)
    return part.first < end


def _header(mark: re.Match[str], text: str) -> tuple[str, str] | None:
    """The section and the rule of a possible header; None if it is not a header."""
    if mark["capitals"]:
        name, how = section_name(mark["capitals"])
        # 10:30 or a score is not a header, but "FINDINGS:The" is.
        known = name and how != "view header"
        if (mark["space"] is None or ";" in mark[0]) and not known:
            return None
        return name, how if name else "unknown header"
    header = mark["alone"] or mark["inline"] or mark["small"]
    name = _NAMES.get(" ".join(header.lower().split()), "")
    joint = not name and section_name(header)[1] == "joint"
    if joint:
        return "impression", "joint"
    if not name or name not in _IN_LOWER_CASE:
        return None
    if mark["small"]:
        return (name, "lower case") if _starts_sentence(text, mark.start()) else None
    return name, "no colon" if mark["alone"] else "within a line"


def _starts_sentence(text: str, place: int) -> bool:
    """Whether a new sentence starts: after a blank line, a title in capitals, or the end of a sentence."""
    end = max(place - 1, 0)
    last = text[text.rfind("\n", 0, end) + 1 : end].strip()
    return not any(letter.islower() for letter in last) or last.endswith((".", ":", ";", "?", "!", "_", ")"))


def _choose(parts: list[_Part], name: str, rules: set[str]) -> str:
    """The last non-empty section with a name; one named after views only if there is no other."""
    named = [part for part in parts if part.name == name and part.text]
    plain = [part for part in named if part.how != "view header"]
    if len(plain or named) > 1:
        rules.add("repeated section")
    return (plain or named)[-1].text if named else ""


def _last(parts: list[_Part], name: str) -> str:
    return next((part.text for part in reversed(parts) if part.name == name and part.text), "")


def _body(parts: list[_Part]) -> tuple[_Part | None, str, str]:
    """The part that is used of a report with neither findings nor impression, its text, and its source."""
    filled = [part for part in parts if part.text]
    last = next((part for part in reversed(filled) if part.name not in _ENDING), filled[-1] if filled else None)
    if last is None:
        return None, "", "empty"
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n[ \t]*\n", last.text) if paragraph.strip()]
    if last.how or last.name:
        rest = "\n".join(paragraphs[1:])
        return (last, rest, "last paragraphs") if rest else (last, last.text, "last section")
    # Without a header the first paragraph may be a title ("CHEST RADIOGRAPH") or already the report.
    if len(paragraphs) > 1 and not paragraphs[0].endswith((".", "?", "!")):
        return last, "\n".join(paragraphs[1:]), "last paragraphs"
    return last, last.text, "whole report"


def _fold(text: str) -> str:
    return " ".join(text.split())
