"""Folders, JSON and JSON lines on disk; an old file stays whole if writing fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
        raise ValueError(f"The folder {folder} cannot be made ({error.strerror}): check {setting}.") from error


def write_json(path: Path, value: object) -> None:
    """Write through a temporary file, so that an old file stays whole if writing fails."""
    _replace(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines in the same manner."""
    _replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _replace(path: Path, text: str) -> None:
    # A name that nobody else uses: a file of the user's beside it must stay.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add JSON lines to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
