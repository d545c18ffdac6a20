"""Files of generated and reference reports: JSON lines, JSON (a list, or ReXrank's studies by id), CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    """N studies in the order of the file.

    Args:
        ids: Different from each other; the row's number where the file has no ids.
        preds: Generated reports.
        target: Reference reports.
        has_ids: Whether the ids stand in the file.
        columns: Which column was read as `id` ("row number" without one), `preds` and `target`.
    """

    ids: list[str]
    preds: list[str]
    target: list[str]
    has_ids: bool
    columns: dict[str, str]


def read_predictions(
    path: Path, id_column: str | None = None, preds_column: str | None = None, target_column: str | None = None
) -> Predictions:
    """Read a file of predictions; the ending of its name says what it is (.jsonl, .json, .csv, .tsv).

    Args:
        path: The file.
        id_column: Column of the study's id; the first of `ID_COLUMNS` by default, the row's number without one.
        preds_column: Column of the generated report; the first of `PREDS_COLUMNS` by default.
        target_column: Column of the reference report; the first of `TARGET_COLUMNS` by default.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, has no rows, lacks a column, repeats an id, or holds something other than text
            in a report; the message names the file and the rows.
    """
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} holds no studies.")
    preds_column = _column(path, rows, preds_column, PREDS_COLUMNS, "preds", "generated report")
    target_column = _column(path, rows, target_column, TARGET_COLUMNS, "target", "reference report")
    if preds_column == target_column:
        raise ValueError(f"{path}: {preds_column!r} cannot be both report and reference: see --preds and --target.")
    if id_column is None:
        id_column = next((c for c in ID_COLUMNS if any(c in row for row in rows)), None)
    if id_column is not None:
        without = [str(number) for number, row in enumerate(rows, 1) if row.get(id_column) in (None, "")]
        if without:
            has = quoted(rows[0])
            raise ValueError(f"{path} has no {id_column!r} in {len(without)} rows: {some(without)}; it has {has}.")
    ids = [str(number if id_column is None else row[id_column]) for number, row in enumerate(rows, 1)]
    seen: set[str] = set()
    repeated = [name for name in ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if repeated:
        raise ValueError(f"{path} holds {len(repeated)} studies twice: {some(repeated)}; each must count once.")
    for column in (preds_column, target_column):
        wrong = [name for name, row in zip(ids, rows, strict=True) if not isinstance(row.get(column), str)]
        if wrong:
            raise ValueError(f"{path}: {column!r} is not a text in {len(wrong)} of {len(rows)} rows: {some(wrong)}.")
    preds, target = ([row[column] for row in rows] for column in (preds_column, target_column))
    columns = {"id": id_column or "row number", "preds": preds_column, "target": target_column}
    return Predictions(ids, preds, target, id_column is not None, columns)


def column_names(path: Path) -> list[str]:
    """The columns of a file of predictions, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    return list(dict.fromkeys(column for row in read_rows(path) for column in row))


def align(first: Predictions, second: Predictions, names: tuple[str, str]) -> Predictions:
    """The second file's rows in the order of the first's.

    Raises:
        ValueError: If the files do not hold the same studies with the same references; the message lists them.
    """
    if set(first.ids) != set(second.ids):
        only = [[name for name in a.ids if name not in set(b.ids)] for a, b in ((first, second), (second, first))]
        parts = [f"{len(ids)} only in {name} ({some(ids)})" for ids, name in zip(only, names, strict=True) if ids]
        raise ValueError(f"A paired comparison needs the same studies, but {' and '.join(parts)}.")
    place = {name: row for row, name in enumerate(second.ids)}
    order = [place[name] for name in first.ids]
    preds, target = ([texts[i] for i in order] for texts in (second.preds, second.target))
    aligned = Predictions(first.ids, preds, target, second.has_ids, second.columns)
    other = [name for name, a, b in zip(first.ids, first.target, aligned.target, strict=True) if a.split() != b.split()]
    if other:
        raise ValueError(
            f"A paired comparison needs equal references, but those of {len(other)} studies differ between "
            f"{names[0]} and {names[1]}: {some(other)}."
        )
    return aligned


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, each with named fields.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _table, ".tsv": _table}
    if path.suffix.lower() not in readers:
        raise ValueError(f"Expected a file that ends in {', '.join(readers)}, but got {path}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        rows = list(readers[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{path} is not UTF-8 text ({reason}): save it as UTF-8.") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a readable table: {error}.") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {number} is not an object with named fields, but {type(row).__name__}.")
    return rows


def _json_lines(path: Path) -> Iterable[Any]:
    # Not splitlines(): reports may hold other line separators than the file's.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}.") from error


def _json(path: Path) -> Iterable[Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno} is not JSON: {error.msg}.") from error
    except (RecursionError, ValueError) as error:  # nested or long beyond what Python reads
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from error
    if isinstance(value, list):
        return [{"text": row} if isinstance(row, str) else row for row in value]
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        return [{"study_id": name, **row} for name, row in value.items()]
    if isinstance(value, dict) and value and all(_one_text(text) is not None for text in value.values()):
        return [{"study_id": name, "text": _one_text(text)} for name, text in value.items()]
    raise ValueError(f"{path} is neither a list of studies nor an object of studies by id (ReXrank's form).")


def _one_text(value: Any) -> str | None:
    """A text, or the only one of a list (R2GenGPT's form); None for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else None


def _table(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        csv.field_size_limit(2**30)
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        names = [name.strip() for name in reader.fieldnames or []]
        if len(names) == 1 and ";" in names[0]:
            raise ValueError(f"{path} separates its columns by semicolons: save it with commas, or as .tsv with tabs.")
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"{path} has more than one column {quoted(sorted(repeated))}.")
        reader.fieldnames = names
        for row in reader:
            if None in row:
                raise ValueError(f"{path}: a row ({some([str(v) for v in row.values()][:1])}) has too many fields.")
            yield row


def _column(
    path: Path, rows: Sequence[dict[str, Any]], name: str | None, known: Sequence[str], option: str, what: str
) -> str:
    names = dict.fromkeys(column for row in rows for column in row)
    chosen = name if name is not None else next((column for column in known if column in names), None)
    if chosen is None or chosen not in names:
        looked = repr(name) if name is not None else " or ".join(known)
        raise ValueError(
            f"{path} has no column for the {what} (looked for {looked}); it has {quoted(names)}: name it with "
            f"--{option}."
        )
    return chosen


def quoted(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(map(repr, names))


def some(names: Sequence[str], most: int = 10) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
