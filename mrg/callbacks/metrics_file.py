"""metrics.csv: a resumed run appends to it, and a crash never leaves it without its rows."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mrg.files import WriteError, append_text, replacing
from mrg.log import log
from mrg.run.folder import set_aside


class MetricsFile(Logger):
    """Logger of one CSV file, to which it appends; Lightning's `CSVLogger` would delete an existing one.

    Args:
        folder: Folder of the run.
        every: Number of steps between two writes.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        super().__init__()
        self.folder, self.every = folder, every
        self.rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Empty: a run has one file."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignore them: config.yaml contains all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row, and write all rows every few steps."""
        step = len(self.rows) if step is None else step
        self.rows.append({**metrics, "step": step})
        if (step + 1) % self.every == 0:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Append the rows since the last time; if they have new columns, replace the file."""
        if not self.rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "metrics.csv"
        known, old = _read(path)
        columns = sorted(set(known).union(*self.rows))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=columns if len(columns) > len(known) else known)
        if len(columns) > len(known):
            writer.writeheader()
            writer.writerows(old + self.rows)
            with replacing(path) as out:
                out.write(text.getvalue().encode())
        else:
            writer.writerows(self.rows)
            append_text(path, text.getvalue())
        self.rows = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the remaining rows; after a failure a full disk has already been reported."""
        with contextlib.suppress(*([WriteError] if status == "failed" else [])):
            self.save()


def _read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of an existing file; a damaged one is renamed, because a run must not end for its log."""
    if not path.is_file() or not path.stat().st_size:
        return [], []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or []), list(reader)
        if "step" not in names or any(None in row for row in rows):
            raise csv.Error("a row has more fields than the header")
        return names, rows
    except (UnicodeDecodeError, csv.Error) as error:
        log.warning(f"{path} is damaged ({error}): it is now {set_aside(path).name}, and a new one is started.")
        return [], []
