"""`python -m mrg runs`: the runs in a folder, one line each, the latest first; read from their small files alone."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrg.commands.arguments import OneLineParser
from mrg.errors import NotFoundError, UserError
from mrg.run.find import all_runs, is_run
from mrg.run.lock import is_locked

HEAD = ("run", "state", "step", "best", "test", "updated")
_CHANGING = ("run.json", "metrics.csv", "results.json", "config.yaml")


def main(args: Sequence[str]) -> None:
    """Parse the options and print the table."""
    parser = OneLineParser(
        "runs",
        "List the runs in a folder and its subfolders, the latest first: state, step, best score on the "
        "validation split by --monitor, score on the test split, and time since the last change.",
    )
    parser.add_argument("folder", nargs="?", help="folder of runs (default: runs)")
    parser.add_argument("--runs", metavar="FOLDER", help="the same, as for the other commands")
    options = parser.parse_args(list(args))
    if options.folder and options.runs:
        raise UserError(f"{options.folder} and --runs {options.runs} both name the folder of runs: pass one of them.")
    folder = Path(options.folder or options.runs or "runs")
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}: pass the folder of your runs, or run `fit` first.")
    print(runs_table(folder))


def runs_table(runs: Path) -> str:
    """Return one line for each run in a folder, the latest first; a damaged run says what is wrong with it."""
    folders = [runs] if is_run(runs) else all_runs(runs)
    if not folders:
        return f"There are no runs in {runs}."
    now = time.time()
    dated = sorted(((_changed(folder), folder) for folder in folders), reverse=True)
    rows = [HEAD]
    for changed, folder in dated:
        name = folder.relative_to(runs).as_posix() if folder != runs else str(runs)
        rows.append((name, *describe(folder), f"{_age(now - changed)} ago" if changed else "–"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def describe(folder: Path) -> tuple[str, str, str, str]:
    """Return state, step, best validation score and test score of a run, each as text."""
    state, results = _json(folder / "run.json"), _json(folder / "results.json")
    step, total = state.get("step"), state.get("num_steps")
    steps = "–" if step is None else f"{step}/{total}" if total else str(step)
    return _state(folder, state), steps, _best(folder, state), _test(results)


def _state(folder: Path, state: dict[str, Any]) -> str:
    if "damaged" in state:
        return "damaged: run.json"
    found = str(state.get("state") or "")
    if found == "running" or not found:
        locked = is_locked(folder)
        if locked:
            return found or "starting"
        if found and locked is False:
            return "killed"
    if found:
        return found
    if (folder / "config.yaml").is_file():
        return "unknown"
    return "not trained" if (folder / "predictions.jsonl").is_file() else "damaged: no config.yaml"


def _best(folder: Path, state: Mapping[str, Any]) -> str:
    """The best value of the score that chooses the checkpoint, from metrics.csv."""
    found = re.search(r"^monitor: *['\"]?([^'\"\s]+)", _text(folder / "config.yaml"), re.MULTILINE)
    monitor = found[1] if found else "val/mccs"
    rows = csv.reader(_text(folder / "metrics.csv").splitlines())
    try:
        place = next(rows, []).index(monitor)
        values = [float(row[place]) for row in rows if len(row) > place and row[place]]
    except (ValueError, csv.Error):
        return "–"
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "–"
    if monitor.endswith("loss") or state.get("lower_is_better"):
        return f"{monitor} {min(values):.3f}"
    return f"{monitor} {100 * max(values):.1f} %"


def _test(results: dict[str, Any]) -> str:
    """The model's MCCS on the test split."""
    found: Any = results
    for key in ("systems", "model", "scores", "MCCS", "value"):
        found = found.get(key) if isinstance(found, dict) else None
    return f"MCCS {100 * found:.1f} %" if isinstance(found, float) else "–"


def _json(file: Path) -> dict[str, Any]:
    """Content of a JSON file; `{"damaged": True}` if it is not an object, empty if there is none."""
    text = _text(file)
    try:
        content = json.loads(text) if text or os.path.exists(file) else {}
    except (ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {"damaged": True}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _changed(folder: Path) -> float:
    times = [0.0]
    for name in _CHANGING:
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
