"""Rows of a table as studies in the making, by a map of its columns."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mrg.datamodules.errors import DataError, ImageReadError, first_names
from mrg.datamodules.images.read import ImageFinder
from mrg.datamodules.study import Study, View, pair_positions, to_position
from mrg.errors import UserError, counted
from mrg.files import identifier, is_missing
from mrg.log import log

_BATCH = 1000


@dataclasses.dataclass
class Columns:
    """Columns of a table by their role; a role that the table does not have is empty.

    Args:
        image: Path, list of paths, several paths joined by `image_delimiter`, or the image itself (an `Image` feature
            of `datasets`, or the bytes of a file); or several such columns.
        report: Report, or its sections in order; empty if there is no reference.
        join: Text between the sections.
        id: Study id; empty for the row number.
        id_pattern: Regular expression, searched in the id column: its groups, joined by `_`, are the id.
        patient: Patient id.
        patient_pattern: Regular expression for the patient id, like `id_pattern`.
        split: Name of the split.
        indication: Reason for the examination, or several columns, joined by a space.
        position: Position of the view, or of each view of the row in the order of `image`.
        image_delimiter: Text between several paths in one field.
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
        """The columns that are needed, each once."""
        roles = (self.image, self.report, self.id, self.patient, self.split, self.indication, self.position)
        return list(dict.fromkeys(name for role in roles for name in _several(role)))


@dataclasses.dataclass
class Draft:
    """A study while its rows are read; the fields are those of `Study` and the name of its split."""

    id: str
    split: str
    report: str
    indication: str
    patient: str
    views: list[View]

    def study(self, views: Sequence[View]) -> Study:
        """The study with the given views."""
        return Study(self.id, tuple(views), self.report, self.indication, self.patient)


class TableReader:
    """Reads the rows of one or more tables into drafts.

    Args:
        columns: Columns by role.
        images: Folder to which image paths are relative.
        row: Whether a row is a `"study"` or an `"image"`.
        title: Name of the table, for messages.
        keep_repeats: Make separate studies of rows that must not share an id, so that a check can list them, instead of
            raising an error in `finish`.
    """

    def __init__(
        self, columns: Columns, images: Path, row: Literal["study", "image"], title: str, keep_repeats: bool = False
    ) -> None:
        self.columns, self.row, self.title, self.keep_repeats = columns, row, title, keep_repeats
        self.finder = ImageFinder(images)
        self.id_pattern = _compiled("id_pattern", columns.id_pattern)
        self.patient_pattern = _compiled("patient_pattern", columns.patient_pattern)
        self.drafts: dict[str, Draft] = {}
        self.problems: dict[str, list[str]] = {}
        self.contradicted: list[str] = []
        self.unpaired: list[str] = []
        self.positions: dict[str, None] = {}
        self.num_rows = 0

    def add(self, rows: Any, split: str) -> None:
        """Read a `datasets.Dataset`; `split` is the name under which it is published, if any."""
        stored = StoredImages(rows, _several(self.columns.image), self.title)
        texts = [name for name in self.columns.names() if name not in stored.counts]
        if not texts:
            for number in range(len(rows)):
                self._row({}, stored, number, split)
            return
        number = 0
        for block in rows.select_columns(texts).iter(batch_size=_BATCH):
            for cells in zip(*block.values(), strict=True):
                self._row(dict(zip(block, cells, strict=True)), stored, number, split)
                number += 1

    def _row(self, row: dict[str, Any], stored: StoredImages, number: int, split: str) -> None:
        columns = self.columns
        self.num_rows += 1
        name = self._match(self.id_pattern, row, columns.id, "id") or f"row {self.num_rows}"
        draft = Draft(
            id=name,
            split=identifier(row[columns.split]) if columns.split else split,
            report=self._report(row, name),
            indication=_joined(row, columns.indication, " "),
            patient=self._match(self.patient_pattern, row, columns.patient, "patient"),
            views=self._views(row, stored, number, name),
        )
        known = self.drafts.setdefault(name, draft)
        if known is not draft and self.keep_repeats and (self.row == "study" or known.split != draft.split):
            # No cell contains a line break at its end, because cells are stripped.
            key = f"{name}\n{self.num_rows if self.row == 'study' else draft.split}"
            known = self.drafts.setdefault(key, draft)
        if known is draft:
            return
        if self.row == "study":
            self._note("occur in more than one row; set data.init_args.row to image if a row is an image", name)
        elif known.split != draft.split:
            self._note("are in more than one split", name)
        elif known.report and draft.report and known.report != draft.report:
            self.contradicted.append(name)
        if known.patient and draft.patient and known.patient != draft.patient:
            self._note("are of more than one patient", name)
        known.views.extend(draft.views)
        for role in ("report", "indication", "patient"):  # only some rows of a study may have it
            setattr(known, role, getattr(known, role) or getattr(draft, role))

    def _report(self, row: dict[str, Any], name: str) -> str:
        for column in _several(self.columns.report):
            if isinstance(row[column], (list, dict)):
                self._note(f"have no text in {column!r}, but a {type(row[column]).__name__}", name)
        return _joined(row, self.columns.report, self.columns.join)

    def _note(self, problem: str, name: str) -> None:
        self.problems.setdefault(problem, []).append(name)

    def _match(self, pattern: re.Pattern[str] | None, row: dict[str, Any], column: str, role: str) -> str:
        """The value of a column, or the part of it that the pattern matches."""
        value = identifier(row[column]) if column else ""
        if role == "id" and column and not value:
            self._note(f"have no {column!r}", f"row {self.num_rows}")
        if pattern is None or not value:
            return value
        found = pattern.search(value)
        if found is None:
            self._note(f"have a {column!r} that data.init_args.columns.{role}_pattern does not match", value)
            return value
        return "_".join(group for group in found.groups() if group) or found[0]

    def _views(self, row: dict[str, Any], stored: StoredImages, number: int, name: str) -> list[View]:
        views: list[View | None] = []
        for column in _several(self.columns.image):
            if column in stored.counts:
                views += stored.views(column, number)
            else:
                paths = map(text, self._list(row[column]))
                views += [View(self.finder.find(path.replace("\\", "/"))) if path else None for path in paths]
        words = [text(word) for word in self._list(row[self.columns.position])] if self.columns.position else []
        found, agree = pair_positions(views, words)
        if not agree:
            self.unpaired.append(name)
        self.positions |= dict.fromkeys(filter(None, words))
        return found

    def _list(self, value: Any) -> list[Any]:
        """One or several values as a list; tables also contain lists as text."""
        if isinstance(value, str):
            if value.startswith("[") and value.endswith("]"):
                return _parsed_list(value)
            if self.columns.image_delimiter:
                return [part.strip() for part in value.split(self.columns.image_delimiter)]
        return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]

    def finish(self, missing_images: Literal["raise", "drop", "keep"]) -> list[Draft]:
        """Check the drafts and return them.

        Args:
            missing_images: Whether missing images are an error, are left out, or are kept as listed.

        Raises:
            DataError: If the ids or splits of rows contradict each other.
            DataNotFoundError: If images are missing and `missing_images` is `"raise"`, or if all of them are missing.
        """
        for problem, names in self.problems.items():
            raise DataError(f"Table {self.title}: {len(names)} of its studies {problem}: {first_names(names)}.")
        if self.contradicted:
            log.warning(
                f"Table {self.title}: {counted(len(self.contradicted), 'row has', 'rows have')} another report than an "
                f"earlier row of the study, which is used: {first_names(self.contradicted)}."
            )
        if self.unpaired:
            log.warning(
                f"Table {self.title}: {counted(len(self.unpaired), 'row has', 'rows have')} more or fewer positions in "
                f"{self.columns.position!r} than images, so that the positions of their views are unknown: "
                f"{first_names(self.unpaired)}; check data.init_args.columns.image_delimiter, which splits both."
            )
        elif self.positions and not any(map(to_position, self.positions)):
            words = first_names(list(map(repr, self.positions)))
            log.warning(
                f"Table {self.title}: no value of {self.columns.position!r} is a known position ({words}), so that the "
                "positions of all views are unknown; check data.init_args.columns.position and image_delimiter."
            )
        found = self.finder.num_found
        if missing_images == "raise" or (missing_images == "drop" and not found):
            hint = "set data.init_args.missing_images to drop to leave them out, or" if found else "please"
            self.finder.check(self.title, f"{hint} check data.init_args.root and data.init_args.images")
        if self.finder.missing and missing_images == "drop":
            missing = {self.finder.folder / name for name in self.finder.missing}
            for draft in self.drafts.values():
                draft.views = [view for view in draft.views if view.image not in missing]
        return list(self.drafts.values())


@dataclasses.dataclass(frozen=True)
class TableView(View):
    """A view whose image stays in the table until it is read; `image` is its name in messages.

    Args:
        rows: The `datasets.Dataset` in Arrow format, which leaves images as they are stored.
        place: Row, column, and index in the row's list of images, or -1 for a single image.
    """

    rows: Any = None
    place: tuple[int, str, int] = (0, "", -1)

    def read(self) -> Image.Image:
        """Read the image through a temporary file; see `View.read`."""
        row, column, index = self.place
        value = self.rows[row].column(column)[0].as_py()
        value = value if index < 0 else value[index]
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is None:
            return View(Path(path or "")).read()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / (Path(path or "").name or "image")
            file.write_bytes(data)
            try:
                return View(file).read()
            except ImageReadError as error:
                raise type(error)(str(error).replace(str(file), str(self.image))) from None


class StoredImages:
    """The columns of a table that contain images, as features of `datasets` or as the bytes of files.

    Args:
        rows: A `datasets.Dataset`.
        columns: Columns that may contain images; those with paths are ignored.
        title: Name of the table, for messages.

    Attributes:
        counts: For each column with images, the number of images per row; -1 for a single image, -2 if it is missing.
    """

    def __init__(self, rows: Any, columns: Sequence[str], title: str) -> None:
        self.title = title
        self.counts: dict[str, list[int]] = {}
        for name in columns:
            feature = rows.features[name]
            inner = getattr(feature, "feature", None)
            if _is_image(feature):
                self.counts[name] = [-1 if v else -2 for c in _chunks(rows, name) for v in c.is_valid().to_pylist()]
            elif inner is not None and _is_image(inner):
                # Arrow knows the lengths without reading the images.
                self.counts[name] = [n or 0 for c in _chunks(rows, name) for n in c.value_lengths().to_pylist()]
        self.rows = rows.with_format("arrow")

    def views(self, column: str, row: int) -> list[View | None]:
        """The views of one row; None for a single image that is missing."""
        count, name = self.counts[column][row], Path(f"{self.title}, row {row + 1}, {column}")
        if count == -2:
            return [None]
        indices = [-1] if count < 0 else list(range(count))
        return [TableView(name, rows=self.rows, place=(row, column, index)) for index in indices]


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _chunks(rows: Any, column: str) -> Iterator[Any]:
    for block in rows.select_columns([column]).with_format("arrow").iter(batch_size=_BATCH):
        yield from block.column(0).chunks


def text(value: Any) -> str:
    """A cell as stripped text; empty if it has no value (see `is_missing`)."""
    return "" if is_missing(value) else str(value).strip()


def _joined(row: dict[str, Any], role: str | Sequence[str], separator: str) -> str:
    return separator.join(filter(None, (text(row[column]) for column in _several(role))))


def _parsed_list(value: str) -> list[Any]:
    """A list in JSON's or Python's notation."""
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
