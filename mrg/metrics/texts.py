"""Files of generated reports, or of references, alone, and how two of them are joined."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mrg.errors import UserError
from mrg.files import csv_rows
from mrg.log import log
from mrg.metrics.predictions import (
    ID_COLUMNS,
    PREDS_COLUMNS,
    TARGET_COLUMNS,
    Predictions,
    read_ids,
    scored_pairs,
    some,
)
from mrg.metrics.rows import is_report, quoted, read_rows

TEXT = "text"
"""Column of a file whose reports have no name."""


class Texts(NamedTuple):
    """N reports in the order of a file.

    Args:
        ids: Study ids, or None if the file has none.
        texts: Reports as in the file; missing ones are words such as `nan`, see `mrg.files.is_missing`.
        path: The file.
        column: Column of the reports.
    """

    ids: Sequence[str] | None
    texts: list[str]
    path: Path
    column: str


def read_texts(path: Path, side: str, id_column: str | None = None, text_column: str | None = None) -> Texts:
    """Read generated reports or references.

    Args:
        path: JSON lines, JSON, CSV or TSV. A CSV file without a header line has one column, reports (R2Gen, R2GenCMN),
            or two, ids and reports; a JSON object may map ids to a report or to a list with one report (R2GenGPT).
        side: `"preds"` or `"target"`, which determines the default names of the column.
        id_column: Column of the ids; the first of `ID_COLUMNS` by default, none if the file has none of them.
        text_column: Column of the reports; the first default name by default.

    Raises:
        NotFoundError: If the file does not exist.
        UserError: If it cannot be read, has no rows, lacks a column, repeats an id, or a report is not a text; the
            message names the file and the rows.
    """
    own, other = (PREDS_COLUMNS, TARGET_COLUMNS) if side == "preds" else (TARGET_COLUMNS, PREDS_COLUMNS)
    named = [name for name in (id_column, text_column) if name is not None]
    rows = None if named else _without_header(path)
    rows = read_rows(path) if rows is None else rows
    if not rows:
        raise UserError(f"{path} holds no studies.")
    names = dict.fromkeys(column for row in rows for column in row)
    usual = (*own, TEXT, *other)
    column = text_column or next((name for name in usual if name in names), None)
    what = "generated reports" if side == "preds" else "references"
    if column not in names:
        looked = repr(text_column) if text_column else " or ".join(usual)
        raise UserError(
            f"{path} has no column of {what} (looked for {looked}); it has {quoted(names)}: set it with --{side}."
        )
    assert column is not None
    ids, found = read_ids(path, rows, id_column)
    wrong = [str(n) for n, row in enumerate(rows, 1) if not is_report(row.get(column))]
    if wrong:
        raise UserError(f"{path}: {column!r} is not a text in {len(wrong)} of {len(rows)} rows: {some(wrong)}.")
    return Texts(ids if found else None, [str(row.get(column)) for row in rows], path, column)


def join(preds: Texts, target: Texts, by_row: bool = False) -> Predictions:
    """Pair generated reports with references.

    Args:
        preds: Generated reports.
        target: References.
        by_row: Pair by the order of the files instead of by id.

    Returns:
        The pairs in the order of the references. Studies without a reference are excluded and listed in `no_target`;
        missing predictions are empty, and those that hold a word such as `nan` are listed in `no_preds`.

    Raises:
        UserError: If no study has a reference, one side has no ids, or the ids (by row, the numbers of reports)
            differ.
    """
    columns = {"id": "row number" if by_row else "id", "preds": preds.column, "target": target.column}
    if by_row:
        if len(preds.texts) != len(target.texts):
            raise UserError(
                f"--by_row needs as many reports as references, but {preds.path} has {len(preds.texts):,} and "
                f"{target.path} {len(target.texts):,}."
            )
        ids = target.ids or [str(number) for number in range(1, len(target.texts) + 1)]
        return scored_pairs(zip(ids, preds.texts, target.texts, strict=True), target.path, bool(target.ids), columns)
    for side in (preds, target):
        if side.ids is None:
            raise UserError(
                f"{side.path} has no ids ({' or '.join(ID_COLUMNS)}) to join by: set their column with --id, or join "
                "by the order of the files with --by_row."
            )
    assert preds.ids is not None
    assert target.ids is not None
    parts = []
    for a, b in ((preds, target), (target, preds)):
        held = set(b.ids or ())
        only = [name for name in a.ids or () if name not in held]
        if only:
            parts.append(f"{len(only):,} of the {len(a.texts):,} ids of {a.path} are not in {b.path} ({some(only, 5)})")
    if parts:
        raise UserError(f"Reports and references must have the same ids, but {' and '.join(parts)}.")
    texts = dict(zip(preds.ids, preds.texts, strict=True))
    pairs = ((name, texts[name], text) for name, text in zip(target.ids, target.texts, strict=True))
    return scored_pairs(pairs, target.path, True, columns)


def _without_header(path: Path) -> list[dict[str, object]] | None:
    """Rows of a CSV file of one or two columns whose first line has no known column; None for any other file."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for _, row in csv_rows(file)]
    except (csv.Error, UnicodeDecodeError):
        return None  # the reader of files with a header line names the fault
    known = {*ID_COLUMNS, *PREDS_COLUMNS, *TARGET_COLUMNS, TEXT}
    width = len(rows[0]) if rows else 0
    if width not in (1, 2) or any(len(row) != width for row in rows) or known & {cell.strip() for cell in rows[0]}:
        return None
    log.info(f"{path} has no header line: its first line, of {len(rows[0][-1].split())} words, is read as a report.")
    names = (TEXT,) if width == 1 else (ID_COLUMNS[0], TEXT)
    return [dict(zip(names, row, strict=True)) for row in rows]
