"""The sections of a radiology report as MIMIC-CXR has them: free text under headers, most of them in capitals.

Two steps: find the headers and cut the text there, then choose what is findings, impression and indication. Follows the
parser published with the data set (github.com/MIT-LCP/mimic-cxr, Johnson et al., 2019) in what counts as a header, in
taking the last of several sections of one name, in a joint section being the impression, and in falling back on the
last paragraphs. Departs from it where it loses text; every departure is a rule of `RULES`, so that it can be counted:

- a header may be misspelt, in small letters, without its colon, or in the middle of a line;
- a header of no known name inside findings or impression ("LINES AND TUBES:") stays there as part of the text;
- findings named as such win over those named after the views ("CHEST, TWO VIEWS:");
- a preliminary reading is left aside where the final report follows;
- "NDICATION" is an indication; no study is set aside by its id; a report of one paragraph is kept.
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
"""What the text of a report was taken from: each report has exactly one."""

RULES = (
    "misspelt header",
    "small letters",
    "no colon",
    "within a line",
    "longer header",
    "view header",
    "subheading",
    "repeated section",
    "wet read",
    "addendum",
)
"""What else had a hand in reading a report: each may have none or several."""

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
# "Date:" or "Comment:" in small letters is more often text than a header.
_IN_SMALL_LETTERS = set(_SPELLINGS) - {"date", "comment", "recommendations", "notification"}
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
# The token `___` of de-identification has three of them and may stand alone on a line.
_DIVIDER = re.compile(r"^[ \t]*(_{10,}|(?P<final>FINAL REPORT))[ \t]*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Sections:
    """What a report says, by section; white space is folded to single spaces.

    Args:
        findings: Empty where the report has no such section.
        impression: Likewise; a section of findings and impression in one is here.
        indication: Why the examination was made, or else the clinical history.
        body: What else can pass for the report where it has neither findings nor impression; otherwise empty.
        source: One of `SOURCES`.
        rules: Some of `RULES`, in their order.
    """

    findings: str
    impression: str
    indication: str
    body: str
    source: str
    rules: tuple[str, ...]


@dataclasses.dataclass
class _Part:
    """A stretch of text under one header, `name` "" where there is none; `how` is the rule by which it was found."""

    name: str
    how: str
    start: int
    text: str = ""
    final: bool = False


def parse_sections(report: str) -> Sections:
    """Cut a report into sections; whatever it looks like, it has exactly one `source`.

    Args:
        report: The text of a file of MIMIC-CXR.
    """
    text = report.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    parts, rules = _cut(text)
    final = [part for part in parts if part.final]
    if any(part.text and part.name in ("findings", "impression") for part in final) or (
        # Where the final report is free text, a preliminary reading under headers must not pass for it.
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
        body, source = _body(parts)
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
    """The section that a header names, and the rule by which: ("", "") for a header of no known name.

    Example:
        >>> section_name("REASON FOR EXAM"), section_name("NDICATION"), section_name("CHEST, TWO VIEWS")
        (('indication', ''), ('indication', 'misspelt header'), ('findings', 'view header'))
    """
    name = " ".join(header.lower().split()).strip(" ,-")
    if name in _NAMES:
        return _NAMES[name], ""
    if "finding" in name and "impression" in name:
        return "impression", "joint"
    # A sentence in capitals that mentions a history is no header.
    if len(name.split()) <= 6:
        for section in _CONTAINED:
            if section in name:
                return section, "longer header"
    near = difflib.get_close_matches(name, _LONG_NAMES, n=1, cutoff=0.85)
    if near:
        return _NAMES[near[0]], "misspelt header"
    if _VIEWS.search(name):
        return "findings", "view header"
    return "", ""


def _cut(text: str) -> tuple[list[_Part], set[str]]:
    """Cut at headers and dividers; says as well which rules were used."""
    marks = sorted([*_HEADER.finditer(text), *_DIVIDER.finditer(text)], key=lambda mark: (mark.start(), mark.end()))
    parts, rules, final = [_Part("", "", 0)], set(), False
    for mark in marks:
        last = parts[-1]
        if mark.start() < last.start:
            continue  # a divider was read as a header without a colon, or the other way round
        if mark.re is _DIVIDER:
            final = final or mark["final"] is not None
            name, how = "", ""
        else:
            found = _header(mark, text)
            if found is None:
                continue
            name, how = found
            if last.name in ("findings", "impression") and _is_subheading(how, text[last.start : mark.start()]):
                rules.add("subheading")
                continue
            if last.name in ("wet read", "addendum") and how == "unknown header":
                continue
        last.text = text[last.start : mark.start()].strip()
        # A header of no known name may be the report's first words, so it stays in the text.
        parts.append(_Part(name, how, mark.start() if how == "unknown header" else mark.end(), final=final))
        rules |= {how, name} & set(RULES)
    parts[-1].text = text[parts[-1].start :].strip()
    return parts, rules


def _is_subheading(how: str, before: str) -> bool:
    """Whether a header is one within findings or impression: of no known name, or a view after some text."""
    return how == "unknown header" or (how == "view header" and bool(before.strip()))


def _header(mark: re.Match[str], text: str) -> tuple[str, str] | None:
    """The section and the rule of something that may be a header; None where it is none."""
    if mark["capitals"]:
        name, how = section_name(mark["capitals"])
        # 10:30 or a score is no header, but "FINDINGS:The" is one.
        known = name and how != "view header"
        if (mark["space"] is None or ";" in mark[0]) and not known:
            return None
        return name, how if name else "unknown header"
    header = mark["alone"] or mark["inline"] or mark["small"]
    name = _NAMES.get(" ".join(header.lower().split()), "")
    joint = not name and section_name(header)[1] == "joint"
    if joint:
        return "impression", "joint"
    if not name or name not in _IN_SMALL_LETTERS:
        return None
    if mark["small"]:
        return (name, "small letters") if _starts_afresh(text[: mark.start()]) else None
    return name, "no colon" if mark["alone"] else "within a line"


def _starts_afresh(before: str) -> bool:
    """Whether no sentence goes on: after a blank line, a title in capitals, or the end of a sentence."""
    last = before[:-1].rpartition("\n")[2].strip()
    return not any(letter.islower() for letter in last) or last.endswith((".", ":", ";", "?", "!", "_", ")"))


def _choose(parts: list[_Part], name: str, rules: set[str]) -> str:
    """The last section of a name that is not empty; one named after views only where no other is."""
    named = [part for part in parts if part.name == name and part.text]
    plain = [part for part in named if part.how != "view header"]
    if len(plain or named) > 1:
        rules.add("repeated section")
    return (plain or named)[-1].text if named else ""


def _last(parts: list[_Part], name: str) -> str:
    return next((part.text for part in reversed(parts) if part.name == name and part.text), "")


def _body(parts: list[_Part]) -> tuple[str, str]:
    """The report of a text with neither findings nor impression, and its source."""
    filled = [part for part in parts if part.text]
    last = next((part for part in reversed(filled) if part.name not in _ENDING), filled[-1] if filled else None)
    if last is None:
        return "", "empty"
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n[ \t]*\n", last.text) if paragraph.strip()]
    if last.how or last.name:
        return ("\n".join(paragraphs[1:]), "last paragraphs") if len(paragraphs) > 1 else (last.text, "last section")
    # Without a header the first paragraph may be a title ("CHEST RADIOGRAPH") or already the report.
    if len(paragraphs) > 1 and not paragraphs[0].endswith((".", "?", "!")):
        return "\n".join(paragraphs[1:]), "last paragraphs"
    return last.text, "whole report"


def _fold(text: str) -> str:
    return " ".join(text.split())
