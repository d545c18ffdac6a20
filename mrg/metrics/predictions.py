"""Files of generated and reference reports: JSON lines, JSON (a list, or ReXrank's studies by id), CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mrg.errors import NotFoundError, UserError
from mrg.files import csv_rows, identifier, is_missing, not_utf8, parse_json

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
    """The N studies of a file that have a reference, in the order of the file.

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

    ids: list[str]
    preds: list[str]
    target: list[str]
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
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path} holds no studies.")
    preds_column = _column(path, rows, preds_column, PREDS_COLUMNS, "preds", "generated report")
    if target_column is None and any("section_findings" in row and "model_prediction" in row for row in rows):
        target_column = "section_findings"  # ReXrank's protocol: findings are scored, though the file has whole reports
    target_column = _column(path, rows, target_column, TARGET_COLUMNS, "target", "reference report")
    if preds_column == target_column:
        raise UserError(f"{path}: {preds_column!r} cannot be both report and reference: set --preds and --target.")
    ids, id_column = read_ids(path, rows, id_column)
    for column in (preds_column, target_column):
        wrong = [name for name, row in zip(ids, rows, strict=True) if not is_report(row.get(column))]
        if wrong:
            raise UserError(f"{path}: {column!r} is not a text in {len(wrong)} of {len(rows)} rows: {some(wrong)}.")
    columns = {"id": id_column or "row number", "preds": preds_column, "target": target_column}
    rows_of = zip(ids, [row.get(preds_column) for row in rows], [row.get(target_column) for row in rows], strict=True)
    return scored_pairs(rows_of, path, id_column is not None, columns)


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
    pairs = list(pairs)
    scored = [(name, pred, target) for name, pred, target in pairs if not is_missing(target)]
    if not scored:
        raise UserError(
            f"{path} has no reference report: {columns['target']!r} has no text in any of its {len(pairs)} rows."
        )
    return Predictions(
        ids=[name for name, _, _ in scored],
        preds=["" if is_missing(pred) else str(pred) for _, pred, _ in scored],
        target=[str(target) for _, _, target in scored],
        has_ids=has_ids,
        columns=columns,
        no_target=tuple(name for name, _, target in pairs if is_missing(target)),
        no_preds=tuple(name for name, pred, _ in scored if is_missing(pred) and str(pred).strip()),
    )


def read_ids(path: Path, rows: Sequence[dict[str, Any]], column: str | None = None) -> tuple[list[str], str | None]:
    """Read the ids of studies, and the column that they were read from.

    Args:
        path: File of the rows, for messages.
        rows: Rows with named fields.
        column: Column of the ids; the first of `ID_COLUMNS` by default, or else the ids are row numbers.

    Returns:
        One id per row, and its column, None for row numbers.

    Raises:
        UserError: If a row has no id, or an id is repeated.
    """
    if column is None:
        column = next((c for c in ID_COLUMNS if any(c in row for row in rows)), None)
    if column is None:
        return [str(number) for number in range(1, len(rows) + 1)], None
    without = [str(number) for number, row in enumerate(rows, 1) if is_missing(row.get(column))]
    if without:
        has = quoted(rows[0])
        raise UserError(f"{path} has no {column!r} in {len(without)} rows: {some(without)}; it has {has}.")
    ids = [identifier(row[column]) for row in rows]
    seen: set[str] = set()
    repeated = [name for name in ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if repeated:
        raise UserError(f"{path} holds {len(repeated)} studies twice: {some(repeated)}; each must count once.")
    return ids, column


def column_names(path: Path) -> list[str]:
    """Columns of a file of predictions, in the order of the file.

    Raises:
        NotFoundError: If the file does not exist.
        UserError: If it cannot be read.
    """
    return list(dict.fromkeys(column for row in read_rows(path) for column in row))


def is_report(value: Any) -> bool:
    """Whether a value is text, or a missing one."""
    return isinstance(value, str) or is_missing(value)


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
    preds, target = ([texts[i] for i in order] for texts in (second.preds, second.target))
    aligned = Predictions(first.ids, preds, target, *second[3:])
    other = [name for name, a, b in zip(first.ids, first.target, aligned.target, strict=True) if a.split() != b.split()]
    if other:
        raise UserError(
            f"A paired comparison needs equal references, but those of {len(other)} studies differ between "
            f"{names[0]} and {names[1]}: {some(other)}."
        )
    return aligned


def read_reports(path: Path, column: str | None = None) -> list[str]:
    """Read reports, such as training reports, from a file like that of `read_predictions`; missing ones are left out.

    Args:
        path: The file, or an annotation.json of R2Gen's form, of which the training split is read.
        column: Column of the report; the first of `TARGET_COLUMNS` by default.

    Raises:
        NotFoundError: If the file does not exist.
        UserError: If it cannot be read, or has no reports.
    """
    rows = read_rows(path, "train")
    column = _column(path, rows, column, TARGET_COLUMNS, "target", "report")
    wrong = [str(number) for number, row in enumerate(rows, 1) if not is_report(row.get(column))]
    if wrong:
        raise UserError(f"{path}: {column!r} is not a text in {len(wrong)} of {len(rows)} rows: {some(wrong)}.")
    reports = [row[column] for row in rows if not is_missing(row.get(column))]
    if not reports:
        raise UserError(f"{path} holds no reports in its column {column!r}.")
    return reports


def read_rows(path: Path, split: str = "") -> list[dict[str, Any]]:
    """Read the rows of a file, each with named fields.

    Args:
        path: The file.
        split: Split to read from an annotation.json; a file without splits is read completely.

    Raises:
        NotFoundError: If the file does not exist.
        UserError: If it cannot be read.
    """
    readers: dict[str, Callable[[Path], Iterable[Any]]] = {
        ".jsonl": _json_lines,
        ".json": partial(_json, split=split),
        ".csv": _table,
        ".tsv": _table,
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"Expected a file that ends in {', '.join(readers)}, but got {path}.")
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        rows = list(readers[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(path, error)) from error
    except csv.Error as error:
        raise UserError(f"{path} is not a readable table: {error}.") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is not an object with named fields, but {type(row).__name__}.")
    return rows


def _json_lines(path: Path) -> Iterable[Any]:
    # Line by line, which takes a third of the memory of the whole text. Not splitlines(): reports may hold other line
    # separators than the file's.
    names: dict[str, str] = {}  # one text per name instead of one per row
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    row = parse_json(line)
                    is_row = isinstance(row, dict)
                    yield {names.setdefault(name, name): value for name, value in row.items()} if is_row else row
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}.") from error
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}.") from None


def _json(path: Path, split: str = "") -> Iterable[Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno} is not JSON: {error.msg}.") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of too many digits
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if split and isinstance(value, dict) and isinstance(value.get(split), list):
        return list(value[split])
    if isinstance(value, list):
        return [{"text": row} if isinstance(row, str) else row for row in value]
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        return [{"study_id": name, **row} for name, row in value.items()]
    if isinstance(value, dict) and value and all(is_report(_only(text)) for text in value.values()):
        return [{"study_id": name, "text": _only(text)} for name, text in value.items()]
    raise UserError(f"{path} is neither a list of studies nor an object of studies by id (ReXrank's form).")


def _only(value: Any) -> Any:
    """The only item of a list (R2GenGPT's files); any other value as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _table(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = csv_rows(file, delimiter)
        names = [name.strip() for name in next(rows, (1, []))[1]]
        if len(names) == 1 and ";" in names[0]:
            raise UserError(f"{path} separates its columns by semicolons: save it with commas, or as .tsv with tabs.")
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise UserError(f"{path} has more than one column {quoted(sorted(repeated))}.")
        for line, row in rows:
            if len(row) != len(names):
                raise csv.Error(f"expected {len(names)} fields in line {line}, saw {len(row)}; check its quotes")
            yield dict(zip(names, row, strict=True))


def _column(
    path: Path, rows: Sequence[dict[str, Any]], name: str | None, known: Sequence[str], option: str, what: str
) -> str:
    names = dict.fromkeys(column for row in rows for column in row)
    chosen = name if name is not None else next((column for column in known if column in names), None)
    if chosen is None or chosen not in names:
        looked = repr(name) if name is not None else " or ".join(known)
        other = ", or give a file of references with --references" if what == "reference report" else ""
        raise UserError(
            f"{path} has no column for the {what} (looked for {looked}); it has {quoted(names)}: name it with "
            f"--{option}{other}."
        )
    return chosen


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, as text."""
    return ", ".join(map(repr, names))


def some(names: Sequence[str], most: int = 10) -> str:
    """The first names of a list, and the number of the others, as text."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
