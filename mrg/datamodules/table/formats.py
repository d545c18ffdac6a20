"""Table formats as `datasets.Dataset`: CSV, JSON, JSON lines, Parquet, a saved folder, or a data set on the hub.

Text stays text: an id such as 007 must not become the number 7, and "None" is a word. Rows stay on disk in the cache of
`datasets`, so that a table with images may be larger than memory; only the requested columns of JSON, which cannot
contain images, are read into memory.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mrg.datamodules.errors import DataError, DataNotFoundError
from mrg.errors import UserError
from mrg.files import csv_rows, parse_json

KINDS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
KEY = "study_id"
"""Column for the keys of a JSON object of studies by id."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def open_table(
    name: str, root: Path, columns: Sequence[str], encoding: str = "utf-8", delimiter: str = "", cache_dir: str = ""
) -> dict[str, Any]:
    """Open a table.

    Args:
        name: File in `root` (.csv, .tsv, .json, .jsonl, .parquet; text also as .gz), folder in `root` (saved by
            `save_to_disk`, or with data files), or id of a data set on the hub, followed by `:config` if it has
            several.
        root: Folder to which `name` is relative.
        columns: Required columns.
        encoding: Encoding of CSV and JSON.
        delimiter: Delimiter of CSV; empty for a tab in .tsv, otherwise a comma.
        cache_dir: Cache folder of `datasets`; empty for its default.

    Returns:
        A `datasets.Dataset` for each split of the table; under the key `""` if it has no splits.

    Raises:
        DataNotFoundError: If the table does not exist.
        DataError: If it cannot be read, or a column is missing.
    """
    path = root / name
    kind = _kind(path)
    with _readable(str(path) if path.exists() else name, encoding), _quiet():
        if path.is_file():
            if not kind:
                raise DataError(f"Table {path}: expected a file name that ends in {', '.join(KINDS)}.")
            return {"": _file(path, kind, columns, encoding, delimiter, cache_dir)}
        if path.is_dir():
            return _with_columns(_folder(path, cache_dir), str(path), columns)
        if kind or not _HUB_ID.fullmatch(name):
            raise DataNotFoundError(
                f"Table {path} does not exist; check data.init_args.root and data.init_args.table (a file, a folder or "
                "the id of a data set on the hub)."
            )
        return _with_columns(_hub(name, cache_dir), name, columns)


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    return kind if kind in KINDS else ""


def _file(path: Path, kind: str, columns: Sequence[str], encoding: str, delimiter: str, cache_dir: str) -> Any:
    import datasets

    if kind in (".json", ".jsonl"):
        # Not by `load_dataset`, which parses a column of dates as times and one of mixed ids as numbers.
        return _json(path, kind, columns, encoding)
    options: dict[str, Any] = {"data_files": str(path), "split": "train", "cache_dir": cache_dir or None}
    if kind == ".parquet":
        options |= {"path": "parquet"}
    else:
        delimiter = delimiter or ("\t" if kind == ".tsv" else ",")
        names, num_rows = _check_csv(path, encoding, delimiter)
        require(columns, names, str(path))
        # For all columns: with `usecols`, pandas would silently truncate rows that are too long.
        features = datasets.Features({name: datasets.Value("string") for name in names})
        options |= {"path": "csv", "sep": delimiter, "features": features}
        options |= {"keep_default_na": False, "encoding": _codec(encoding)}
    table = datasets.load_dataset(**options)
    require(columns, table.column_names, str(path))
    if kind in (".csv", ".tsv") and len(table) != num_rows:
        raise DataError(f"Table {path}: {len(table)} of its {num_rows} rows can be read; check the quotes in the file.")
    return table


def _check_csv(path: Path, encoding: str, delimiter: str) -> tuple[list[str], int]:
    """Column names and number of rows, after a strict reading: pandas shifts, fills and merges damaged rows."""
    num_rows = 0
    with _open(path, encoding) as file:
        rows = csv_rows(file, delimiter)
        _, names = next(rows, (1, []))
        if len(names) == 1 and ";" in names[0] and delimiter != ";":
            raise DataError(f"Table {path} separates its columns by semicolons; set data.init_args.delimiter to ';'.")
        for num_rows, (line, row) in enumerate(rows, 1):
            if len(row) == len(names):
                continue
            if num_rows == 1:
                raise DataError(
                    f"Table {path}: its header names {len(names)} columns, but its first row has {len(row)} fields "
                    f"(line {line}); check data.init_args.delimiter, or the quotes and line breaks in the file."
                )
            raise csv.Error(f"Expected {len(names)} fields in line {line}, saw {len(row)}")
    if not names or not num_rows:
        raise DataError(f"Table {path} has no rows; copy it again.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"Table {path} has more than one column {repeated[0]!r}; rename all but one.")
    names = [name or f"Unnamed: {place}" for place, name in enumerate(names)]  # pandas' name for a nameless column
    return names, num_rows


def _open(path: Path, encoding: str) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding=_codec(encoding), newline="")
    return path.open(encoding=_codec(encoding), newline="")


def _codec(encoding: str) -> str:
    """The codec that also reads the byte order mark that editors on Windows write."""
    return "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding


def _json(path: Path, kind: str, columns: Sequence[str], encoding: str) -> Any:
    """Read one row per line, a list of rows, or an object of rows by id."""
    import datasets

    with _open(path, encoding) as file:
        content = list(_lines(path, file)) if kind == ".jsonl" else parse_json(file.read())
    if isinstance(content, Mapping) and content and all(isinstance(row, Mapping) for row in content.values()):
        content = [{KEY: key, **row} for key, row in content.items()]
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        raise DataError(f"Table {path}: expected a list of studies, or an object of studies by id.")
    if not content:
        raise DataError(f"Table {path} has no rows; copy it again.")
    require(columns, dict.fromkeys(name for row in content for name in row), str(path))
    return datasets.Dataset.from_dict({name: _column([row.get(name) for row in content]) for name in columns})


def _lines(path: Path, file: IO[str]) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield parse_json(line)
            except json.JSONDecodeError as error:
                raise DataError(f"Table {path}, line {number} is not JSON: {error.msg}.") from None
            except UserError as error:
                raise DataError(f"Table {path}, line {number}: {error}.") from None


def _column(values: list[Any]) -> list[Any]:
    """Values of one type, as Arrow requires: texts, or lists of texts if any row has a list."""

    def text(value: Any) -> str | None:
        return None if value is None or value != value else str(value)  # NaN differs from itself

    if any(isinstance(value, list) for value in values):
        return [[text(v) for v in (value if isinstance(value, list) else [value])] for value in values]
    return [text(value) for value in values]


def _folder(path: Path, cache_dir: str) -> Any:
    import datasets

    if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return datasets.load_from_disk(str(path))
    for file in sorted(file for file in path.rglob("*") if _kind(file) in (".csv", ".tsv")):
        _check_csv(file, "utf-8", "\t" if _kind(file) == ".tsv" else ",")
    return datasets.load_dataset(str(path), cache_dir=cache_dir or None)


def _hub(name: str, cache_dir: str) -> Any:
    import datasets

    repository, _, config = name.partition(":")
    return datasets.load_dataset(repository, config or None, cache_dir=cache_dir or None)


def _with_columns(table: Any, name: str, columns: Sequence[str]) -> dict[str, Any]:
    splits = dict(table) if isinstance(table, Mapping) else {"": table}
    for split, part in splits.items():
        require(columns, part.column_names, f"{name}, split {split}" if split else name)
    return splits


def require(columns: Sequence[str], names: Sequence[str] | Mapping[str, Any], table: str) -> None:
    """Check that a table has the required columns.

    Raises:
        DataError: If a column is missing.
    """
    missing = [name for name in columns if name not in names]
    if missing:
        cut = next((name for name in names if any(name.startswith(f"{short} #") for short in missing)), "")
        quote = f'. YAML takes the text after " #" for a comment: put the name in quotes, "{cut}"' if cut else ""
        raise DataError(
            f"Table {table} has no column {' and no column '.join(map(repr, missing))}, only {', '.join(names)}; "
            f"correct data.init_args.columns{quote}."
        )


@contextlib.contextmanager
def _readable(name: str, encoding: str) -> Iterator[None]:
    """Convert the libraries' errors into errors of one line."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        yield
    except (DataError, DataNotFoundError):
        raise
    except (DatasetNotFoundError, ConnectionError) as error:
        raise DataNotFoundError(
            f"Data set {name!r} is neither in data.init_args.root nor found on the hub ({_first_line(error)}); check "
            "data.init_args.table, the network, and `hf auth login` if the data set requires it."
        ) from None
    except (DatasetGenerationError, ValueError, OSError, EOFError, csv.Error, LookupError) as error:
        cause: BaseException = error
        while isinstance(cause, DatasetGenerationError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UnicodeDecodeError):
            raise DataError(
                f"Table {name} is not {encoding} text (at byte {cause.start}); set data.init_args.encoding, for "
                "example to latin-1."
            ) from None
        raise DataError(f"Table {name} cannot be read ({_first_line(cause)}); copy it again.") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Disable progress bars and the libraries' own error messages."""
    import datasets

    bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
