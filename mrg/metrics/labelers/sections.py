"""Removal of the sections that do not describe the image, by their headings."""

from __future__ import annotations

import re

from mrg.metrics.labelers.layout import HARD, SOFT

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
