"""Files of generated and reference reports, read row by row into little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrg.errors import UserError
from mrg.files import identifier, is_missing
from mrg.log import log
from mrg.metrics.packed import PackedTexts, distinct, pick
from mrg.metrics.rows import Rows, is_report, quoted

ID_COLUMNS = ("id", "study_id")
PREDS_COLUMNS = (
    "prediction", "preds", "model_prediction", "generated", "generated_report", "model_output", "pred_report",
    "hypothesis", "output", "response", "res",
)  # fmt: skip
TARGET_COLUMNS = (
    "target", "reference", "report", "ground_truth", "section_findings", "gt_report", "reference_report", "gt", "gts",
    "findings",
)  # fmt: skip


class Predictions(NamedTuple):
    """The N studies of a file that have a reference, in the order of the file; many texts are packed (`PackedTexts`).

    Args:
        ids: Unique ids; the numbers of the rows if the file has no ids.
        preds: Generated reports.
        target: Reference reports.
        has_ids: Whether the file has ids.
        columns: Columns that were read as `id` ("row number" without one), `preds` and `target`.
        no_target: Ids of the studies without a reference (see `is_missing`), which are excluded.
        no_preds: Ids of the studies whose prediction is missing although its cell is not empty, such as `nan`; their
            generated report is empty.
    """

    ids: Sequence[str]
    preds: Sequence[str]
    target: Sequence[str]
    has_ids: bool
    columns: dict[str, str]
    no_target: tuple[str, ...] = ()
    no_preds: tuple[str, ...] = ()


def read_predictions(
    path: Path, id_column: str | None = None, preds_column: str | None = None, target_column: str | None = None
) -> Predictions:
    """Read a file of predictions in the form given by its suffix (.jsonl, .json, .csv, .tsv).

    Args:
        path: The file.
        id_column: Column of the study's id; the first of `ID_COLUMNS` by default, or else the row's number.
        preds_column: Column of the generated report; the first of `PREDS_COLUMNS` by default.
        target_column: Column of the reference report; the first of `TARGET_COLUMNS` by default.

    Raises:
        NotFoundError: If the file does not exist.
        UserError: If it cannot be read, has no rows, lacks a column, repeats an id, has no reference, or a report is
            not a text; the message names the file and the rows.
    """
    rows = Rows(path)
    if next(iter(rows), None) is None:
        raise UserError(f"{path} holds no studies.")
    names = dict.fromkeys(column for row in rows for column in row)
    preds_column = _column(path, names, preds_column, PREDS_COLUMNS, "preds", "generated report")
    rexrank = ("section_findings", "model_prediction")
    if target_column is None and names.keys() >= set(rexrank) and any(row.keys() >= set(rexrank) for row in rows):
        target_column = "section_findings"  # ReXrank's protocol: findings are scored, though the file has whole reports
    target_column = _column(path, names, target_column, TARGET_COLUMNS, "target", "reference report")
    if preds_column == target_column:
        raise UserError(f"{path}: {preds_column!r} cannot be both report and reference: set --preds and --target.")
    ids, id_column = read_ids(path, rows, id_column)
    columns = {"id": id_column or "row number", "preds": preds_column, "target": target_column}
    pairs = _pairs(rows, ids, preds_column, target_column)
    return scored_pairs(pairs, path, id_column is not None, columns)


def _pairs(rows: Rows, ids: Sequence[str], *columns: str) -> Iterator[tuple[str, Any, Any]]:
    """Id, report and reference of each row; at the end, whatever is not a text is an error."""
    wrong: dict[str, list[str]] = {column: [] for column in columns}
    for number, (name, row) in enumerate(zip(ids, rows, strict=True), 1):
        preds, target = (row.get(column) for column in columns)
        for column in columns:
            if not is_report(row.get(column)):
                wrong[column].append(name)
        if number % 200_000 == 0:
            log.info(f"Read {number:,} of {len(ids):,} studies.")
        yield name, preds, target
    for column, names in wrong.items():
        if names:
            raise UserError(f"{rows.path}: {column!r} is not a text in {len(names)} of {len(ids)} rows: {some(names)}.")


def scored_pairs(
    pairs: Iterable[tuple[str, Any, Any]], path: Path, has_ids: bool, columns: dict[str, str]
) -> Predictions:
    """Keep the studies that have a reference; missing predictions become empty.

    Args:
        pairs: Id, generated report and reference of each study; both may be missing, see `is_missing`.
        path: File of the references, for messages.
        has_ids: Whether the file has ids.
        columns: Columns that were read as `id`, `preds` and `target`.

    Raises:
        UserError: If no study has a reference.
    """
    ids, preds, references = texts = PackedTexts(), PackedTexts(), PackedTexts()
    no_target, no_preds = [], []
    for name, pred, target in pairs:
        if is_missing(target):
            no_target.append(name)
            continue
        if is_missing(pred) and str(pred).strip():
            no_preds.append(name)
        for own, text in zip(texts, (name, "" if is_missing(pred) else str(pred), str(target)), strict=True):
            own.append(text)
    if not ids:
        raise UserError(
            f"{path} has no reference report: {columns['target']!r} has no text in any of its {len(no_target)} rows."
        )
    lists = (ids.plain(), preds.plain(), references.plain())
    return Predictions(*lists, has_ids, columns, tuple(no_target), tuple(no_preds))


def read_ids(path: Path, rows: Iterable[dict[str, Any]], column: str | None = None) -> tuple[Sequence[str], str | None]:
    """Read the ids of studies, and the column that they were read from.

    Args:
        path: File of the rows, for messages.
        rows: Rows with named fields; they are read more than once.
        column: Column of the ids; the first of `ID_COLUMNS` by default, or else the ids are row numbers.

    Returns:
        One id per row, and its column, None for row numbers.

    Raises:
        UserError: If a row has no id, or an id is repeated.
    """
    if column is None:
        column = next((c for c in ID_COLUMNS if any(c in row for row in rows)), None)
    if column is None:
        return PackedTexts(str(number) for number, _ in enumerate(rows, 1)).plain(), None
    ids, without = PackedTexts(), []
    for number, row in enumerate(rows, 1):
        name = identifier(row.get(column))
        ids.append(name)
        if not name:
            without.append(str(number))
    if without:
        has = quoted(next(iter(rows)))
        raise UserError(f"{path} has no {column!r} in {len(without)} rows: {some(without)}; it has {has}.")
    (new,), _ = distinct(ids)
    if len(new) < len(ids):
        repeated = list(pick(ids, np.setdiff1d(np.arange(len(ids)), new)))
        raise UserError(f"{path} holds {len(repeated)} studies twice: {some(repeated)}; each must count once.")
    return ids.plain(), column


def column_names(path: Path) -> list[str]:
    """Columns of a file of predictions, in the order of the file.

    Raises:
        NotFoundError: If the file does not exist.
        UserError: If it cannot be read.
    """
    return list(dict.fromkeys(column for row in Rows(path) for column in row))


def align(first: Predictions, second: Predictions, names: tuple[str, str]) -> Predictions:
    """Sort the rows of a second file in the order of the first.

    Raises:
        UserError: If the files do not hold the same studies with the same references; the message lists them.
    """
    if set(first.ids) != set(second.ids):
        held = [set(a.ids) for a in (first, second)]
        only = [[name for name in a.ids if name not in b] for a, b in ((first, held[1]), (second, held[0]))]
        parts = [f"{len(ids)} only in {name} ({some(ids)})" for ids, name in zip(only, names, strict=True) if ids]
        raise UserError(f"A paired comparison needs the same studies, but {' and '.join(parts)}.")
    place = {name: row for row, name in enumerate(second.ids)}
    order = [place[name] for name in first.ids]
    preds, target = ([texts[i] for i in order] for texts in map(list, (second.preds, second.target)))
    aligned = Predictions(first.ids, preds, target, *second[3:])
    other = [name for name, a, b in zip(first.ids, first.target, aligned.target, strict=True) if a.split() != b.split()]
    if other:
        raise UserError(
            f"A paired comparison needs equal references, but those of {len(other)} studies differ between "
            f"{names[0]} and {names[1]}: {some(other)}."
        )
    return aligned


def read_reports(path: Path, column: str | None = None) -> Sequence[str]:
    """Read reports, such as training reports, from a file like that of `read_predictions`; missing ones are left out.

    Args:
        path: The file, or an annotation.json of R2Gen's form, of which the training split is read.
        column: Column of the report; the first of `TARGET_COLUMNS` by default.

    Raises:
        NotFoundError: If the file does not exist.
        UserError: If it cannot be read, or has no reports.
    """
    rows = Rows(path, "train")
    names = dict.fromkeys(name for row in rows for name in row)
    column = _column(path, names, column, TARGET_COLUMNS, "target", "report")
    reports, wrong, number = PackedTexts(), [], 0
    for number, row in enumerate(rows, 1):
        text = row.get(column)
        if not is_report(text):
            wrong.append(str(number))
        elif not is_missing(text):
            reports.append(str(text))
    if wrong:
        raise UserError(f"{path}: {column!r} is not a text in {len(wrong)} of {number} rows: {some(wrong)}.")
    if not reports:
        raise UserError(f"{path} holds no reports in its column {column!r}.")
    return reports.plain()


def _column(path: Path, names: Iterable[str], name: str | None, known: Sequence[str], option: str, what: str) -> str:
    chosen = name if name is not None else next((column for column in known if column in names), None)
    if chosen is None or chosen not in names:
        looked = repr(name) if name is not None else " or ".join(known)
        other = ", or give a file of references with --references" if what == "reference report" else ""
        raise UserError(
            f"{path} has no column for the {what} (looked for {looked}); it has {quoted(names)}: name it with "
            f"--{option}{other}."
        )
    return chosen


def some(names: Sequence[str], most: int = 10) -> str:
    """The first names of a list, and the number of the others, as text."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
