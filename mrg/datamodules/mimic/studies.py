"""Studies from rows of the MIMIC-CXR index: filters, views, sections and prior studies."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mrg.datamodules.mimic.rows import NO_FILE, report_path
from mrg.datamodules.study import Study, View

if TYPE_CHECKING:
    from datasets import Dataset

LATERAL = ("LATERAL", "LL")
"""Positions of lateral views; XTABLE LATERAL and SWIMMERS (three images) count neither as lateral nor as frontal."""

Section = Literal["findings", "impression", "both"]


@dataclasses.dataclass(frozen=True)
class MIMICReader:
    """Makes studies from rows of the index.

    Args:
        images: Folder to which image paths are relative.
        positions: Positions of the frontal views to use, in order of preference; empty for all images in the order of
            the index.
        laterals: Use lateral views, too.
        sections: Sections of the report.
        headerless: Use the text of reports that have neither findings nor impression.
        keep_missing: Use images that do not exist, too.
        report_columns: Columns that `report` needs.
    """

    images: Path
    positions: tuple[str, ...]
    laterals: bool = False
    sections: Section = "findings"
    headerless: bool = False
    keep_missing: bool = False
    report_columns: tuple[str, ...] = ("findings", "impression", "body", "source")

    def wanted(self, position: str) -> bool:
        """Whether views of a position are used."""
        return not self.positions or position in self.positions or (self.laterals and position in LATERAL)

    def has_frontal(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has an image in one of the frontal positions."""
        return any(not self.positions or position in self.positions for _, position in self.images_of(row))

    def images_of(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Path and position of the available images."""
        found = zip(row["images"], row["positions"], row["present"], strict=True)
        return [(image, position) for image, position, there in found if there or self.keep_missing]

    def parts(self, source: str) -> tuple[str, ...]:
        """The columns that make up a report with the given source (see `mrg.datamodules.mimic.sections`)."""
        if source in ("last paragraphs", "last section", "whole report"):
            return ("body",) if self.headerless else ()
        if self.sections != "both":
            return (self.sections,)
        # A joint section already contains both.
        return ("impression",) if source == "joint section" else ("findings", "impression")

    def report(self, row: Mapping[str, Any]) -> str:
        """The requested sections, joined by a space."""
        return " ".join(row[part] for part in self.parts(row["source"]) if row[part])

    def study(self, row: Mapping[str, Any]) -> Study:
        """The study of a row; frontal and lateral views alternate, starting with a frontal one."""
        found = self.images_of(row)
        views = [View(self.images / image, _side(position)) for image, position in found]
        if self.positions:
            frontal = [View(self.images / i, "frontal") for wanted in self.positions for i, p in found if p == wanted]
            lateral = [View(self.images / i, "lateral") for i, p in found if self.laterals and p in LATERAL]
            views = [view for pair in itertools.zip_longest(frontal, lateral) for view in pair if view is not None]
        return Study(
            id=row["id"],
            views=tuple(views),
            report=self.report(row),
            indication=row["indication"],
            patient=row["patient"],
        )


def _side(position: str) -> str:
    return "lateral" if position in LATERAL else "frontal" if position.startswith(("PA", "AP")) else ""


@dataclasses.dataclass
class Selection:
    """Rows of an index that pass its filters, and counts of the others.

    Args:
        rows: Rows of each split.
        priors: Row of each study's prior by split, -1 if there is none.
        listed: Number of studies per split before the filters.
        removed: Number of studies per split that each filter removed; a study counts for the first filter that it
            fails.
        missing: Required files that do not exist, relative to their folder.
        sections: Number of reports by source and rule of `mrg.datamodules.mimic.sections`.
        most_images: Largest number of images of a row.
        cut: Number of selected studies of whose report only the last of several sections under unknown headers is used.
    """

    rows: dict[str, np.ndarray]
    priors: dict[str, np.ndarray]
    listed: Counter[str]
    removed: dict[str, Counter[str]]
    missing: list[str]
    sections: Counter[str]
    most_images: int
    cut: int


def select(table: Dataset, reader: MIMICReader, min_words: int, splits: Sequence[str]) -> Selection:
    """Apply the filters to an index, without reading its texts."""
    rows: dict[str, list[int]] = {split: [] for split in splits}
    priors: dict[str, list[int]] = {split: [] for split in splits}
    removed: dict[str, Counter[str]] = {split: Counter() for split in splits}
    listed, sections, missing = Counter[str](), Counter[str](), list[str]()
    most_images = cut = 0
    patient, earlier = "", list[tuple[str, int]]()
    for number, row in enumerate(_rows(table)):
        split = row["split"]
        listed[split] += 1
        sections.update([row["source"], *row["rules"]])
        missing += _missing(row, reader)
        most_images = max(most_images, len(row["images"]))
        if row["patient"] != patient:
            patient, earlier = row["patient"], []
        reason = _reason(row, reader, min_words)
        if reason:
            removed[split][reason] += 1
        else:
            cut += "several unknown headers" in row["rules"]
            rows[split].append(number)
            priors[split].append(next((place for time, place in reversed(earlier) if time < row["datetime"]), -1))
        if row["datetime"] and reader.has_frontal(row):
            earlier.append((row["datetime"], number))
    rows_of, priors_of = ({s: np.array(n, dtype=np.int64) for s, n in part.items()} for part in (rows, priors))
    return Selection(rows_of, priors_of, listed, removed, missing, sections, most_images, cut)


def _rows(table: Dataset) -> Iterator[dict[str, Any]]:
    names = [name for name in table.column_names if name not in ("findings", "impression", "indication", "body")]
    for columns in table.select_columns(names).iter(batch_size=4096):
        yield from (dict(zip(names, values, strict=True)) for values in zip(*(columns[n] for n in names), strict=True))


def _missing(row: Mapping[str, Any], reader: MIMICReader) -> Iterator[str]:
    if row["source"] == NO_FILE:
        yield report_path(row["patient"], row["id"])
    for image, position, there in zip(row["images"], row["positions"], row["present"], strict=True):
        if not there and reader.wanted(position):
            yield image


def _reason(row: Mapping[str, Any], reader: MIMICReader, min_words: int) -> str:
    """The first filter that a study fails; empty if it passes all."""
    if row["source"] == NO_FILE:
        return "report file missing"
    if reader.positions and not any(position in reader.positions for position in row["positions"]):
        return f"no view in {', '.join(reader.positions)}"
    if not reader.has_frontal(row):
        return "image files missing"
    parts = reader.parts(row["source"])
    words = [row[f"{part}_words"] for part in parts]
    if not all(words) or not words:
        wanted = "findings and impression" if reader.sections == "both" else reader.sections
        return f"no {wanted} ({row['source']})"
    return "" if sum(words) >= min_words else f"fewer than {min_words} words"
