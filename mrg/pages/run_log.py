"""What a run folder says of its training: scores by step, the state, samples. Nothing is assumed to be there."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrg.errors import UserError

STATE = "run.json"
"""Written by `mrg.callbacks.run_page`: the state, when it began, how far it is."""

Series = list[tuple[int, float]]
"""(step, value), by ascending step; values may be nan."""


@dataclasses.dataclass(frozen=True)
class RunLog:
    """A run folder, read.

    Args:
        folder: `<runs>/<name>`.
        state: What `run.json` holds; empty where there is none.
        scores: Log key -> series.
        samples: Rows of samples.jsonl.
        results: results.json of a tested run.
        config: Text of config.yaml.
    """

    folder: Path
    state: dict[str, Any]
    scores: dict[str, Series]
    samples: list[dict[str, Any]]
    results: dict[str, Any]
    config: str

    @classmethod
    def read(cls, folder: Path) -> RunLog:
        """Read what is there.

        Raises:
            ValueError: If the folder is no run's.
        """
        if not any((folder / name).is_file() for name in ("config.yaml", "metrics.csv", STATE)):
            raise UserError(f"Expected {folder} to be a run's folder, but it has no config.yaml and no metrics.csv.")
        config = folder / "config.yaml"
        return cls(
            folder=folder,
            state=_json(folder / STATE),
            scores=read_scores(metrics_files(folder)),
            samples=_lines(folder / "samples.jsonl"),
            results=_json(folder / "results.json"),
            config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        )

    def last(self, key: str, window: int = 1) -> float | None:
        """Mean of the last finite values of a score; None where there are none."""
        values = [value for _, value in self.scores.get(key, []) if math.isfinite(value)][-window:]
        return sum(values) / len(values) if values else None


def metrics_files(folder: Path) -> list[Path]:
    """metrics-1.csv, metrics-2.csv, …, metrics.csv: a run that was resumed has several, the latest last."""
    old = [
        (int(match[1]), path) for path in folder.glob("metrics-*.csv") if (match := re.search(r"-(\d+)$", path.stem))
    ]
    return [path for _, path in sorted(old)] + [path for path in [folder / "metrics.csv"] if path.is_file()]


def read_scores(files: Sequence[Path]) -> dict[str, Series]:
    """Log key -> series over all files; steps that a later file begins with, or has passed, are its own.

    A last row that is being written is left out, as are cells that are no numbers.
    """
    scores: dict[str, Series] = {}
    for file in files:
        rows = [(step, row) for row in _rows(file) if (step := _number(row.get("step"))) is not None]
        if not rows:
            continue
        first = min(step for step, _ in rows)
        scores = {key: [(step, value) for step, value in series if step < first] for key, series in scores.items()}
        for step, row in rows:
            for key, cell in row.items():
                value = _number(cell)
                if key not in ("step", "epoch") and value is not None:
                    scores.setdefault(key, []).append((int(step), value))
    return {key: sorted(series, key=lambda pair: pair[0]) for key, series in scores.items() if series}


def thinned(series: Series, most: int = 240) -> Series:
    """A series of at most so many points, each the mean of equally many neighbours; nan are left out of means."""
    size = math.ceil(len(series) / most)
    if size <= 1:
        return series
    parts = [series[i : i + size] for i in range(0, len(series), size)]
    result = []
    for part in parts:
        values = [value for _, value in part if math.isfinite(value)]
        result.append((part[-1][0], sum(values) / len(values) if values else math.nan))
    return result


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        reader = csv.DictReader(lines)
        # A row that was cut short has None where cells are missing, one too long a key None.
        return [row for row in reader if None not in row and None not in row.values()]


def _number(cell: str | None) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    value = json.loads(file.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _lines(file: Path) -> list[dict[str, Any]]:
    """JSON lines; a last one that is being written is left out."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict)]
