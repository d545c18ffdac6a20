"""Reports of an unfinished `test` or `predict`: one file per process, from which the command can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mrg.errors import UserError
from mrg.files import append_lines, sync_folder, write_lines
from mrg.log import log

_END = "batch_ends"
"""Key of the last row of a batch: a batch of which a crash left a part is computed again, with the same padding."""


class PartFiles:
    """Files `<name>.rank0.jsonl`, `<name>.rank1.jsonl`, … with the finished reports of each process.

    The first line holds `identity`, every other line a study. A batch is on disk when `write` returns.

    Args:
        folder: Folder of the run.
        name: Name of the finished file without its suffix: `predictions` or `predict`.
        identity: Everything on which the reports depend, as values of JSON.
        rank: Rank of this process, which writes one of the files.
    """

    def __init__(self, folder: Path, name: str, identity: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.name, self.identity = folder, name, dict(identity)
        self.file = folder / f"{name}.rank{rank}.jsonl"

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the rows of a batch, and flush them to disk; tensors become lists.

        Raises:
            WriteError: If that fails.
        """
        if not rows:
            return
        plain = [{key: v.tolist() if isinstance(v, Tensor) else v for key, v in row.items()} for row in rows]
        plain[-1][_END] = True
        is_new = not self.file.is_file()
        self.folder.mkdir(parents=True, exist_ok=True)
        append_lines(self.file, [{"identity": self.identity}, *plain] if is_new else plain)
        if is_new:
            sync_folder(self.folder)

    def start_over(self) -> None:
        """Remove the files of an earlier run; called by one process before any writes."""
        if num := self.count():
            log.warning(f"Removing {num:,} finished reports in {self.pattern}, which --resume auto would have used.")
        self.remove()

    @property
    def pattern(self) -> Path:
        """Pattern of the files, for messages."""
        return self.folder / f"{self.name}.rank*.jsonl"

    def count(self) -> int:
        """Number of finished rows of all processes."""
        return sum(len(_complete(file)[1]) for file in self._files())

    def resume(self) -> list[dict[str, Any]]:
        """Read the finished rows of all processes, and merge them into one file; called by one process.

        Raises:
            UserError: If the files were written with other settings, weights or data.
        """
        rows: dict[str, dict[str, Any]] = {}
        for file in self._files():
            identity, found = _complete(file)
            if not found:
                continue
            keys = [*self.identity, *(key for key in identity if key not in self.identity)]
            if other := [key for key in keys if identity.get(key) != self.identity.get(key)]:
                raise UserError(
                    f"{file} cannot be resumed: it was written with another {', '.join(other)}. Use the settings of "
                    "that run, or leave out --resume to start over."
                )
            rows.update((row["id"], row) for row in found)
        merged = list(rows.values())
        if merged:
            ended = [*merged[:-1], {**merged[-1], _END: True}]
            write_lines(self.file, [{"identity": self.identity}, *ended])
        for file in self._files():
            if file != self.file or not merged:
                file.unlink()
        return merged

    def remove(self) -> None:
        """Remove the files of all processes."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(self.pattern.name))


def _complete(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Identity and rows of a file, up to its last complete batch; a crash may have truncated its end."""
    identity: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    batch: list[dict[str, Any]] = []
    for line in file.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("id", ""), str):
            break
        if isinstance(row.get("identity"), dict):
            identity = row["identity"]
        elif "id" in row:
            batch.append(row)
            if row.pop(_END, False):
                rows += batch
                batch = []
    return identity, rows
