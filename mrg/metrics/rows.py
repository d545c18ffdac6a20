"""Rows of files of reports: JSON lines, JSON (a list, or ReXrank's studies by id), CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mrg.errors import NotFoundError, UserError
from mrg.files import csv_rows, is_missing, not_utf8, parse_json


class Rows(Iterable[dict[str, Any]]):
    """The rows of a file, each with named fields. Every iteration reads the file again, row by row.

    A .json file is one value: it is read as a whole, once, and stays in memory.

    Args:
        path: The file.
        split: Split to read from an annotation.json; a file without splits is read completely.

    Raises:
        NotFoundError: If the file does not exist.
        UserError: If it has another ending or, at an iteration, cannot be read.
    """

    def __init__(self, path: Path, split: str = "") -> None:
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
        self.path, self._reader = path, readers[path.suffix.lower()]
        self._whole: Iterable[Any] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            if self.path.suffix.lower() == ".json" and self._whole is None:
                self._whole = self._reader(self.path)
            for number, row in enumerate(self._reader(self.path) if self._whole is None else self._whole, 1):
                if not isinstance(row, dict):
                    raise UserError(
                        f"{self.path}: row {number} is not an object with named fields, but {type(row).__name__}."
                    )
                yield row
        except UnicodeDecodeError as error:
            raise UserError(not_utf8(self.path, error)) from error
        except csv.Error as error:
            raise UserError(f"{self.path} is not a readable table: {error}.") from error


def read_rows(path: Path, split: str = "") -> list[dict[str, Any]]:
    """All rows of a file, see `Rows`."""
    return list(Rows(path, split))


def is_report(value: Any) -> bool:
    """Whether a value is text, or a missing one."""
    return isinstance(value, str) or is_missing(value)


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, as text."""
    return ", ".join(map(repr, names))


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
