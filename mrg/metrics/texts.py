"""One side of an evaluation: a file of generated reports, or of references, and how two of them are joined."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mrg.metrics.predictions import (
    ID_COLUMNS,
    PREDS_COLUMNS,
    TARGET_COLUMNS,
    Predictions,
    quoted,
    read_rows,
    some,
)

TEXT = "text"
"""Column of a file that has one text per study and no name for it."""


class Texts(NamedTuple):
    """N reports in the order of a file.

    Args:
        ids: Study ids, or None where the file has none.
        texts: Reports.
        path: The file.
        column: Column of the reports.
    """

    ids: list[str] | None
    texts: list[str]
    path: Path
    column: str


def read_texts(path: Path, side: str, id_column: str | None = None, text_column: str | None = None) -> Texts:
    """Read the reports of one side.

    Args:
        path: JSON lines, JSON, CSV or TSV. A CSV file without a head line has one column of reports (R2Gen, R2GenCMN),
            or ids and reports; a JSON object may map ids to a report or to a list with one report (R2GenGPT).
        side: `"preds"` or `"target"`, which decides the usual names of the column.
        id_column: Column of the ids; the first of `ID_COLUMNS` by default, none where the file has none of them.
        text_column: Column of the reports; the first usual name by default.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, has no column of reports, repeats an id, or holds no text.
    """
    own, other = (PREDS_COLUMNS, TARGET_COLUMNS) if side == "preds" else (TARGET_COLUMNS, PREDS_COLUMNS)
    named = [name for name in (id_column, text_column) if name is not None]
    rows = None if named else _without_head(path)
    rows = read_rows(path) if rows is None else rows
    if not rows:
        raise ValueError(f"{path} holds no studies.")
    names = dict.fromkeys(column for row in rows for column in row)
    usual = (*own, TEXT, *other)
    column = text_column or next((name for name in usual if name in names), None)
    what = "generated reports" if side == "preds" else "references"
    if column not in names:
        looked = repr(text_column) if text_column else " or ".join(usual)
        raise ValueError(
            f"{path} has no column of {what} (looked for {looked}); it has {quoted(names)}: name it with --{side}."
        )
    assert column is not None
    ids = _ids(path, rows, id_column)
    wrong = [str(n) for n, row in enumerate(rows, 1) if not isinstance(row.get(column), str)]
    if wrong:
        raise ValueError(f"{path}: {column!r} is not text in {len(wrong)} of {len(rows)} rows: {some(wrong)}.")
    return Texts(ids, [str(row[column]) for row in rows], path, column)


def join(preds: Texts, target: Texts, by_row: bool = False) -> Predictions:
    """Pair generated reports with references.

    Args:
        preds: Generated reports.
        target: References.
        by_row: Pair by the order of the files in place of the ids.

    Returns:
        The pairs in the order of the references.

    Raises:
        ValueError: If one side has no ids, or the ids or (by row) the numbers of reports differ.
    """
    columns = {"id": "row number" if by_row else "id", "preds": preds.column, "target": target.column}
    if by_row:
        if len(preds.texts) != len(target.texts):
            raise ValueError(
                f"--by-row needs as many reports as references, but {preds.path} has {len(preds.texts):,} and "
                f"{target.path} {len(target.texts):,}."
            )
        ids = target.ids or [str(number) for number in range(1, len(target.texts) + 1)]
        return Predictions(ids, preds.texts, target.texts, target.ids is not None, columns)
    for side in (preds, target):
        if side.ids is None:
            raise ValueError(
                f"{side.path} has no ids ({' or '.join(ID_COLUMNS)}) to join by: name their column with --id, or join "
                "by the order of the files with --by-row."
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
        raise ValueError(f"Reports and references must have the same ids, but {' and '.join(parts)}.")
    texts = dict(zip(preds.ids, preds.texts, strict=True))
    return Predictions(target.ids, [texts[name] for name in target.ids], target.texts, True, columns)


def _ids(path: Path, rows: Sequence[dict[str, object]], id_column: str | None) -> list[str] | None:
    column = id_column or next((name for name in ID_COLUMNS if any(name in row for row in rows)), None)
    if column is None:
        return None
    without = [str(number) for number, row in enumerate(rows, 1) if row.get(column) in (None, "")]
    if without:
        raise ValueError(f"{path} has no {column!r} in {len(without)} rows: {some(without)}; it has {quoted(rows[0])}.")
    ids = [str(row[column]) for row in rows]
    seen: set[str] = set()
    repeated = [name for name in ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if repeated:
        raise ValueError(f"{path} holds {len(repeated)} ids twice: {some(repeated, 5)}.")
    return ids


def _without_head(path: Path) -> list[dict[str, object]] | None:
    """The rows of a CSV file whose first line names no known column, if it has one column or two; None otherwise."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return None
    csv.field_size_limit(2**30)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (csv.Error, UnicodeDecodeError):
        return None  # the reader with a head line says what is wrong
    known = {*ID_COLUMNS, *PREDS_COLUMNS, *TARGET_COLUMNS, TEXT}
    width = len(rows[0]) if rows else 0
    if width not in (1, 2) or any(len(row) != width for row in rows) or known & {cell.strip() for cell in rows[0]}:
        return None
    names = (TEXT,) if width == 1 else (ID_COLUMNS[0], TEXT)
    return [dict(zip(names, row, strict=True)) for row in rows]
