"""Rows of a table -> drafts of studies, by a map of its columns."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrg.datamodules.annotation import AnnotationError, DataNotFoundError, ImageFinder
from mrg.datamodules.images.finder import StoredImages
from mrg.datamodules.positions import to_position
from mrg.datamodules.study import Study, View
from mrg.errors import UserError

EMPTY = ("", "nan", "none", "null", "n/a")
"""What tables write where there is nothing; letter case does not matter."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Columns:
    """Which column of a table is what; a role that a table does not have is left empty.

    Args:
        image: A path, a list of paths, several paths with `image_delimiter` between them, or the image itself (a
            feature `Image` of `datasets`, or the bytes of a file); or several such columns.
        report: The report, or its sections in order; empty where there is no reference.
        join: What stands between the sections.
        id: The study's id; empty takes the number of the row.
        id_pattern: Regular expression, searched in the id's column: its groups, with `_` between them, are the id.
        patient: Who was examined.
        patient_pattern: The same for the patient.
        split: The split's name.
        indication: Why the examination was made, or several columns, joined by a space.
        position: The position of the view, or of each of the row's views as `image` has them.
        image_delimiter: What stands between several paths in one field.
    """

    image: str | list[str]
    report: str | list[str] = ""
    join: str = " "
    id: str = ""
    id_pattern: str = ""
    patient: str = ""
    patient_pattern: str = ""
    split: str = ""
    indication: str | list[str] = ""
    position: str = ""
    image_delimiter: str = ""

    def names(self) -> list[str]:
        """The columns of the table that are needed, each once."""
        roles = (self.image, self.report, self.id, self.patient, self.split, self.indication, self.position)
        names = [name for role in roles for name in _several(role)]
        return list(dict.fromkeys(names))


@dataclasses.dataclass
class Draft:
    """A study while its rows are read."""

    id: str
    split: str
    report: str
    indication: str
    patient: str
    views: list[View]

    def study(self, views: Sequence[View]) -> Study:
        """The study with these of its views."""
        return Study(self.id, tuple(views), self.report, self.indication, self.patient)


class TableReader:
    """Reads the rows of one or more tables into drafts.

    Args:
        columns: Which column is what.
        images: Folder to which image paths are relative.
        row: `"study"` or `"image"`.
        title: The table's name, for messages.
        keep_repeats: Make rows that must not share an id studies of their own, so that a check can list them; otherwise
            `finish` makes them an error.
    """

    def __init__(self, columns: Columns, images: Path, row: str, title: str, keep_repeats: bool = False) -> None:
        self.columns, self.row, self.title, self.keep_repeats = columns, row, title, keep_repeats
        self.finder = ImageFinder(images)
        self.id_pattern = _compiled("id_pattern", columns.id_pattern)
        self.patient_pattern = _compiled("patient_pattern", columns.patient_pattern)
        self.drafts: dict[str, Draft] = {}
        self.problems: dict[str, list[str]] = {}
        self.contradicted: list[str] = []
        self.num_rows = 0

    def add(self, rows: Any, split: str) -> None:
        """Read a `datasets.Dataset`; `split` is the name under which it was given, if any."""
        stored = StoredImages(rows, _several(self.columns.image), self.title)
        texts = [name for name in self.columns.names() if name not in stored.counts]
        if not texts:
            for number in range(len(rows)):
                self._row({}, stored, number, split)
            return
        number = 0
        for block in rows.select_columns(texts).iter(batch_size=1000):
            for cells in zip(*block.values(), strict=True):
                self._row(dict(zip(block, cells, strict=True)), stored, number, split)
                number += 1

    def _row(self, row: dict[str, Any], stored: StoredImages, number: int, split: str) -> None:
        columns = self.columns
        self.num_rows += 1
        name = self._match(self.id_pattern, row, columns.id, "id") or f"row {self.num_rows}"
        draft = Draft(
            id=name,
            split=text(row[columns.split]) if columns.split else split,
            report=_joined(row, columns.report, columns.join),
            indication=_joined(row, columns.indication, " "),
            patient=self._match(self.patient_pattern, row, columns.patient, "patient"),
            views=self._views(row, stored, number),
        )
        known = self.drafts.setdefault(name, draft)
        if known is not draft and self.keep_repeats and (self.row == "study" or known.split != draft.split):
            known = self.drafts.setdefault(
                f"{name}\n{self.num_rows if self.row == 'study' else draft.split}",  # no cell's text: it is stripped
                draft,
            )
        if known is draft:
            return
        if self.row == "study":
            self._note("stand in more than one row; set data.init_args.row to image if a row is an image", name)
        elif known.split != draft.split:
            self._note("are in more than one split", name)
        elif known.report and draft.report and known.report != draft.report:
            self.contradicted.append(name)
        known.views.extend(draft.views)
        for role in ("report", "indication", "patient"):  # where only some of its rows say so
            setattr(known, role, getattr(known, role) or getattr(draft, role))

    def _note(self, problem: str, name: str) -> None:
        self.problems.setdefault(problem, []).append(name)

    def _match(self, pattern: re.Pattern[str] | None, row: dict[str, Any], column: str, role: str) -> str:
        """The value of a column, or the part of it that the pattern finds."""
        value = text(row[column]) if column else ""
        if role == "id" and column and not value:
            self._note(f"have no {column!r}", f"row {self.num_rows}")
        if pattern is None or not value:
            return value
        found = pattern.search(value)
        if found is None:
            self._note(f"have a {column!r} that data.init_args.columns.{role}_pattern does not match", value)
            return value
        return "_".join(group for group in found.groups() if group) or found[0]

    def _views(self, row: dict[str, Any], stored: StoredImages, number: int) -> list[View]:
        views: list[View] = []
        for column in _several(self.columns.image):
            if column in stored.counts:
                views += stored.views(column, number)
            else:
                paths = filter(None, map(text, self._list(row[column])))
                views += [View(self.finder.find(path.replace("\\", "/"))) for path in paths]
        words = self._list(row[self.columns.position]) if self.columns.position else []
        words += [""] * (len(views) - len(words))
        return [dataclasses.replace(view, position=to_position(w)) for view, w in zip(views, words, strict=False)]

    def _list(self, value: Any) -> list[Any]:
        """One value or several, as a list; tables also write lists as text."""
        if isinstance(value, str):
            if value.startswith("[") and value.endswith("]"):
                return _written_list(value)
            if self.columns.image_delimiter:
                return [part.strip() for part in value.split(self.columns.image_delimiter)]
        return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]

    def finish(self, missing_images: str) -> list[Draft]:
        """The drafts, after all checks.

        Args:
            missing_images: What becomes of images that are not there: `"raise"`, `"drop"`, or `"keep"`, as named.

        Raises:
            AnnotationError: If the ids or splits of rows contradict each other.
            DataNotFoundError: If images are missing and `missing_images` is `"raise"`.
        """
        for problem, names in self.problems.items():
            raise AnnotationError(f"Table {self.title}: {len(names)} of its studies {problem}: {first(names)}.")
        if self.contradicted:
            _log.warning(
                "Table %s: %d rows have another report than an earlier row of their study, which is kept: %s.",
                self.title,
                len(self.contradicted),
                first(self.contradicted),
            )
        missing, found = self.finder.missing, self.finder.num_found
        if missing_images == "keep":
            return list(self.drafts.values())
        if missing and (missing_images == "raise" or not found):
            hint = "set data.init_args.missing_images to drop in order to leave them out, or" if found else "please"
            raise DataNotFoundError(
                f"{len(missing)} of the {found + len(missing)} images that {self.title} names are not in "
                f"{self.finder.folder}: {first(missing)}; {hint} check data.init_args.root and data.init_args.images."
            )
        if missing:
            lost = {self.finder.folder / name for name in missing}
            for draft in self.drafts.values():
                draft.views = [view for view in draft.views if view.image not in lost]
        return list(self.drafts.values())


def text(value: Any) -> str:
    """A cell as text, without white space around it; empty where it holds nothing (see `EMPTY`)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes ids as 12.0 where one of them is missing
    cell = "" if value is None or value != value else str(value).strip()
    return "" if cell.lower() in EMPTY else cell


def first(names: Sequence[str], most: int = 5) -> str:
    """The first names, and a mark where there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _joined(row: dict[str, Any], role: str | Sequence[str], between: str) -> str:
    return between.join(filter(None, (text(row[column]) for column in _several(role))))


def _written_list(value: str) -> list[Any]:
    """A list as JSON or as Python writes it."""
    for read in (json.loads, ast.literal_eval):
        try:
            return list(read(value))
        except (ValueError, SyntaxError):
            continue
    return [value]


def _several(role: str | Sequence[str]) -> list[str]:
    return [name for name in ([role] if isinstance(role, str) else role) if name]


def _compiled(name: str, pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise UserError(
            f"data.init_args.columns.{name} {pattern!r} is not a regular expression: {error}; correct it."
        ) from None
