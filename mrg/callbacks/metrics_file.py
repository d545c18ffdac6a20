"""metrics.csv, to which a resumed run adds, and which a crash never leaves without its rows."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from mrg.files import WriteError, append_text, replacing


class MetricsFile(CSVLogger):
    """Lightning's CSV logger for a file that exists: it would delete it.

    Args:
        folder: The run's folder.
        every: Steps from one writing to the next.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        # An empty version puts metrics.csv and config.yaml into the run folder itself.
        super().__init__(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=every)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Who writes the file."""
        if self._experiment is None:
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment

    def finalize(self, status: str) -> None:
        """Write what is left; a disk that is full has been reported when a run fails."""
        with contextlib.suppress(*([WriteError] if status == "failed" else [])):
            super().finalize(status)


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """What is there stays: a run that resumes adds to it."""

    def save(self) -> None:
        """Add the rows since the last time; new columns write the file anew, beside the old one."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        rows: list[dict[str, Any]] = []
        if path.is_file() and path.stat().st_size:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.metrics_keys = list(reader.fieldnames or [])
                new = self._record_new_keys()
                rows = list(reader) if new else []
        else:
            new = self._record_new_keys()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        if new:
            writer.writeheader()
        writer.writerows(rows + self.metrics)
        if new:
            with replacing(path) as out:
                out.write(text.getvalue().encode())
        else:
            append_text(path, text.getvalue())
        self.metrics = []
