"""The training of a run, read from its folder: scores by step, state and samples. Every file may be missing."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mrg.errors import UserError
from mrg.files import parse_json
from mrg.metrics.constants import BEST

STATE = "run.json"
"""File of the state and progress, written by `mrg.callbacks.run_page`."""

Series = list[tuple[int, float]]
"""(step, value) by ascending step; values may be nan."""


@dataclasses.dataclass(frozen=True)
class TrainingLog:
    """The training of a run.

    Args:
        folder: Folder of the run, `<runs>/<name>`.
        state: Content of run.json; empty if there is none.
        scores: Log key -> series.
        samples: Rows of samples.jsonl.
        results: Content of results.json; empty if the run has not been tested.
        config: Text of config.yaml.
    """

    folder: Path
    state: dict[str, Any]
    scores: dict[str, Series]
    samples: list[dict[str, Any]]
    results: dict[str, Any]
    config: str

    @classmethod
    def read(cls, folder: Path) -> TrainingLog:
        """Read a run folder.

        Raises:
            UserError: If it is not the folder of a run, or a file is damaged.
        """
        if not any((folder / name).is_file() for name in ("config.yaml", "metrics.csv", STATE)):
            raise UserError(f"Expected {folder} to be a run's folder, but it has no config.yaml and no metrics.csv.")
        config = folder / "config.yaml"
        return cls(
            folder=folder,
            state=read_object(folder / STATE),
            scores=read_scores(metrics_files(folder)),
            samples=_lines(folder / "samples.jsonl"),
            results=read_object(folder / "results.json"),
            config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        )

    def constants(self, key: str) -> dict[str, float]:
        """Scores of constant reports on the validation split by name, the best constant last if it is known."""
        found = {name: (self.state.get(name.replace(" ", "_")) or {}).get(key) for name in ("constant normal", BEST)}
        return {name: score for name, score in found.items() if score is not None}

    def last(self, key: str, window: int = 1) -> float | None:
        """Mean of the last finite values of a score; None if there are none."""
        values = [value for _, value in self.scores.get(key, []) if math.isfinite(value)][-window:]
        return sum(values) / len(values) if values else None


def metrics_files(folder: Path) -> list[Path]:
    """Files metrics-1.csv, metrics-2.csv, …, metrics.csv, the latest last; a resumed run has several."""
    old = [
        (int(match[1]), path)
        for path in folder.glob("metrics-*.csv")
        if (match := re.search(r"-([0-9]{1,9})$", path.stem))
    ]
    return [path for _, path in sorted(old)] + [path for path in [folder / "metrics.csv"] if path.is_file()]


def read_scores(files: Sequence[Path]) -> dict[str, Series]:
    """Log key -> series over all files; from its first step on, a later file replaces the earlier ones.

    A last row that is still being written is left out, as are cells that are not numbers.
    """
    scores: dict[str, Series] = {}
    for file in files:
        rows = [(step, row) for row in _rows(file) if (step := _step(row.get("step"))) is not None]
        if not rows:
            continue
        first = min(step for step, _ in rows)
        scores = {key: [(step, value) for step, value in series if step < first] for key, series in scores.items()}
        for step, row in rows:
            for key, cell in row.items():
                value = _number(cell)
                if key not in ("step", "epoch") and value is not None:
                    scores.setdefault(key, []).append((step, value))
    return {key: sorted(series, key=lambda pair: pair[0]) for key, series in scores.items() if series}


def thinned(series: Series, most: int = 240) -> Series:
    """Reduce a series to at most `most` points, each the mean of the finite values of equally many neighbours."""
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
    with reading(file), file.open(newline="", encoding="utf-8", errors="replace") as lines:
        reader = csv.DictReader(lines)
        # A truncated row has None for missing cells, a row that is too long has a key None.
        return [row for row in reader if None not in row and None not in row.values()]


def _number(cell: str | None) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return None


def _step(cell: str | None) -> int | None:
    value = _number(cell)
    return int(value) if value is not None and math.isfinite(value) else None


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Context in which a file of a run is read or its values are used.

    Raises:
        UserError: If the content is not what mrg writes; the message names the file.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}".rstrip(".") + "; restore the file or remove it.") from error
    except (csv.Error, LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        # Without the error's text, which may quote a report.
        raise UserError(
            f"{file} is not what mrg writes ({type(error).__name__}); restore the file or remove it."
        ) from error


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no file.

    Raises:
        UserError: If it is damaged.
    """
    if not file.is_file():
        return {}
    with reading(file):
        value = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise UserError(f"expected an object, but got a {type(value).__name__}")
        return value


def _lines(file: Path) -> list[dict[str, Any]]:
    """Rows of JSON lines; a last one that is still being written is left out."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [row for row in rows if isinstance(row, dict)]
