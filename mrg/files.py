"""Folders, JSON and JSON lines on disk; an old file stays whole if writing fails, and what is new outlasts a crash."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mrg.errors import RunError, UserError


class WriteError(RunError):
    """A file could not be written: the disk is full, the folder read-only."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in the place of another, which stays until the new one is whole and on the disk.

    Args:
        path: The file to replace or to make; its folder must exist.

    Raises:
        WriteError: If it cannot be written; what stood there stays.
    """
    # A name that nobody else uses: a file of the user's beside it must stay.
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
    """Put on the disk which names a folder holds: a new name is lost in a crash of the machine otherwise."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, setting: str) -> None:
    """Make a folder and those above it, unless it is there.

    Args:
        folder: What is made.
        setting: What names it, for the message.

    Raises:
        ValueError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made ({error.strerror}): check {setting}.") from error


def write_json(path: Path, value: object) -> None:
    """Write through a temporary file, so that an old file stays whole if writing fails."""
    _replace(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines in the same manner."""
    _replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _replace(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add JSON lines to a file."""
    append_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_text(path: Path, text: str) -> None:
    """Add text to a file and put it on the disk.

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
    """Print; a reader of the output who has seen enough, as `head`, ends neither the work nor the files it writes."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def count_lines(path: Path) -> int:
    """Lines that are whole; 0 where there is no file."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def cut_lines(path: Path, count: int) -> int:
    """Keep the first lines of a file; returns how many it holds now, which may be fewer."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        lines = [line for line in file if line.endswith(b"\n")]
    with replacing(path) as file:
        file.writelines(lines[:count])
    return min(count, len(lines))
