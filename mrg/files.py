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
    """Write a text file in UTF-8, atomically; half of a surrogate pair is written as its JSON escape."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a file of JSON lines."""
    append_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_text(path: Path, text: str) -> None:
    """Append text to a file and flush it to disk; half of a surrogate pair is written as its JSON escape.

    Raises:
        WriteError: If that fails.
    """
    try:
        with path.open("ab") as file:
            file.write(text.encode(errors="backslashreplace"))
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
        UserError: If a key is repeated, a text has half of a surrogate pair, which cannot be written to a file, values
            are nested too deeply, or a number has too many digits; the message names the key.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        if _SURROGATE.search(text):
            _check_characters(value)
        return value
    except (json.JSONDecodeError, UserError):
        raise
    except RecursionError:
        raise UserError("its values are nested too deeply") from None
    except ValueError:  # Python's limit on the digits of an integer
        raise UserError("a number has too many digits") from None


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UserError(f"the key {repeated!r} occurs more than once in one object; keep one of them")
    return values


def _check_characters(value: Any, key: str = "") -> None:
    """Refuse half of a surrogate pair in a text or key; `key` is that of the value, for the message."""
    if isinstance(value, list):
        for item in value:
            _check_characters(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_characters(name, f"{key}, in a key" if key else "a key")
            _check_characters(item, repr(name))
    elif isinstance(value, str) and (half := re.search("[\ud800-\udfff]", value)):
        raise UserError(
            f"the text of {key or 'a value'} has half of a surrogate pair (\\u{ord(half[0]):x}) at character "
            f"{half.start()}, which is no character; remove it"
        )


MOST_YAML = 100_000
"""Largest number of values of a YAML file once its aliases are expanded."""


def check_yaml(text: str) -> None:
    """Check YAML before it is loaded: no mapping has a key twice, and aliases do not make it grow beyond `MOST_YAML`.

    PyYAML alone keeps the last value of a repeated key, and whoever walks through the values visits each alias.

    Raises:
        yaml.YAMLError: If it is not such YAML; the message names the key and the lines.
    """
    import yaml

    sizes: dict[int, int] = {}  # by node; 0 while its parts are counted

    def size(node: yaml.Node, depth: int) -> int:
        line = node.start_mark.line + 1
        if depth > 100:
            raise yaml.YAMLError(f"The values in line {line} are nested too deeply.")
        if id(node) not in sizes:
            sizes[id(node)] = 0
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
                parts = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in parts)
        elif not sizes[id(node)]:
            raise yaml.YAMLError(f"The value in line {line} contains itself.")
        if sizes[id(node)] > MOST_YAML:
            raise yaml.YAMLError(f"The value in line {line} has more than {MOST_YAML:,} parts, counting each alias.")
        return sizes[id(node)]

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise yaml.YAMLError("Its values are nested too deeply.") from None
    if root is not None:
        size(root, 0)


def _check_keys(node: Any) -> None:
    import yaml

    lines: dict[str, int] = {}
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            raise yaml.YAMLError(f"The key {name!r} in line {lines[name]} is repeated: remove it or line {line}.")
        lines[name] = line


def parse_yaml(text: str) -> Any:
    """Parse YAML, see `check_yaml`.

    Raises:
        yaml.YAMLError: If it is not such YAML.
    """
    import yaml

    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except ValueError as error:  # a date or number out of range
        raise yaml.YAMLError(f"{error}.") from None


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file; an empty one has no keys.

    Raises:
        UserError: If it is not YAML with keys; the message is one line that names the file.
    """
    import yaml

    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(path, error)) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not a readable configuration: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path} is not a configuration: expected keys with values, but got {type(content).__name__}.")
    return content or {}


def not_utf8(path: Path | str, error: UnicodeDecodeError) -> str:
    """The message for a file that is not text in UTF-8."""
    return f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."


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
