"""Files, JSON, JSON lines and CSV: atomic, durable writes, strict reading, and the meaning of a table's cell.

If a write fails, the previous file is left intact.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from mrg.errors import RunError, UserError


class WriteError(RunError):
    """A file could not be written: the disk is full, the folder read-only."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` once it is complete and on disk.

    Args:
        path: File to create or replace; its folder must exist.

    Raises:
        WriteError: If it cannot be written; a previous file is left intact.
    """
    # A name that nobody else uses, so that no file of the user is overwritten.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(f"{path} cannot be written ({error.strerror or error}).") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk; without it a new name can be lost if the machine crashes."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, setting: str) -> None:
    """Create a folder and its parents if they do not exist.

    Args:
        folder: Folder to create.
        setting: Setting that names the folder, for the message.

    Raises:
        UserError: If it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be created ({error.strerror}): check {setting}.") from error


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a file of JSON lines."""
    append_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_text(path: Path, text: str) -> None:
    """Append text to a file and flush it to disk.

    Raises:
        WriteError: If that fails.
    """
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WriteError(f"{path} cannot be written ({error.strerror or error}).") from error


def print_if_read(text: str) -> None:
    """Print without failing on a closed pipe, such as that of `head`: the command still has files to write."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_json(text: str) -> Any:
    """Parse JSON in which no object has a key twice; `json` alone would keep the last value.

    Raises:
        json.JSONDecodeError: If it is not JSON.
        UserError: If a key is repeated; the message names it.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise UserError(f"the key {repeated!r} occurs more than once in one object; keep one of them")
    return values


def csv_rows(file: Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Parse CSV strictly: each row with the number of the line on which it starts; blank lines are skipped.

    Args:
        file: Text file, opened with `newline=""`.
        delimiter: Delimiter of the fields.

    Raises:
        csv.Error: If a quote is not closed, or a closing quote is not followed by a delimiter; the message names the
            line.
    """
    csv.field_size_limit(2**30)
    reader, line = csv.reader(file, delimiter=delimiter, strict=True), 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            what = "EOF inside string, a quote is not closed" if "end of data" in str(error) else str(error)
            raise csv.Error(f"the row that starts at line {line}: {what}") from None
        if row is None:
            return
        if row:
            yield line, row
        line = reader.line_num + 1


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def count_lines(path: Path) -> int:
    """Count complete lines; 0 if there is no file."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def cut_lines(path: Path, count: int) -> int:
    """Truncate a file to its first `count` lines; returns the number of lines left, which may be smaller."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        lines = [line for line in file if line.endswith(b"\n")]
    with replacing(path) as file:
        file.writelines(lines[:count])
    return min(count, len(lines))


MISSING = frozenset(("", "-", "--", "nan", "-nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"))
"""Texts that mean that there is no value, in any letter case and with any white space around them."""


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, or a text of `MISSING`."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and value != value)


def identifier(value: Any) -> str:
    """An id as text, the same from every format: `12`, `12.0` and `"12.0"` are one id; empty if it is missing.

    Data frames turn whole numbers into floats where one of them is missing.
    """
    if is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())
