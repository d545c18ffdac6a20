"""The page of a run, `runs/<name>/index.html`, made from the files of its folder alone.

`python -m mrg page runs/NAME` makes it again at any time.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mrg.metrics.constants import BEST
from mrg.metrics.evaluation import COLUMNS, format_span
from mrg.metrics.remarks import remarks, what_is_best
from mrg.pages.page import read_template, render, write_page
from mrg.pages.run_charts import SMOOTHED, latest, run_charts
from mrg.pages.training_log import STATE, TrainingLog, reading
from mrg.run.checkpoint_file import is_outdated

PAGE = "index.html"
FILES = {
    "gallery.html": "images, reports and verdicts of every tested study",
    "gallery-predict.html": "images and reports of every study of `predict`",
    "results.json": "scores in every convention, with intervals",
    "predictions.jsonl": "reports on the test split",
    "predict.jsonl": "reports of `predict`, without scores",
    "samples.jsonl": "completions of some rounds",
    "metrics.csv": "scores by step",
    "events.jsonl": "validations at which the reward rose while another score fell",
    "config.yaml": "configuration",
    "checkpoints": "best.ckpt and those of the last rounds",
    "policy": "best policy, for transformers or the next run",
    "log.txt": "output of the commands",
}
_GROUPS = 4
"""Number of groups of sampled completions on the page."""


def write_run_page(folder: Path) -> Path:
    """Write the page of a run folder; returns its path.

    Raises:
        UserError: If it is not the folder of a run, or one of its files is damaged.
    """
    log = TrainingLog.read(folder)
    values = _values(log)
    with reading(folder / STATE):
        write_page(folder / PAGE, "run.html", **values)
    return folder / PAGE


def run_page(log: TrainingLog) -> str:
    """Render the page.

    Raises:
        UserError: If a file of the run is damaged.
    """
    values = _values(log)
    with reading(log.folder / STATE):
        return render("run.html", **values)


def _values(log: TrainingLog) -> dict[str, Any]:
    with reading(log.folder / "results.json"):
        results = {"table": _table(log.results), "outdated": is_outdated(log.folder, log.results)}
    with reading(log.folder / "samples.jsonl"):
        groups = sample_groups(log.samples)
    with reading(log.folder / STATE):
        return {**results, "groups": groups, **_state_values(log, log.state)}


def _state_values(log: TrainingLog, state: dict[str, Any]) -> dict[str, Any]:
    running = state.get("state") == "running"
    return {
        "title": ": ".join(filter(None, (log.folder.resolve().name, state.get("state")))),
        "name": log.folder.resolve().name,
        "state": state.get("state", ""),
        "running": running,
        "error": state.get("error") or "",
        "facts": _facts(log),
        "step": state.get("step"),
        "num_steps": state.get("num_steps"),
        "latest": latest(log),
        "warnings": find_warnings(log),
        "charts": run_charts(log),
        "folder": str(log.folder),
        "files": [(name, what) for name, what in FILES.items() if (log.folder / name).exists()],
        "config": log.config,
        "smoothed": SMOOTHED,
        "script": Markup(read_template("run.js")),  # our own file, no data in it
    }


def _facts(log: TrainingLog) -> list[str]:
    state = log.state
    classes = re.findall(r"class_path: (mrg\.(?:modules|datamodules)\.[\w.]+)", log.config)
    facts = [" on ".join(path.rsplit(".", 1)[1] for path in classes[:2])] if classes else []
    if state.get("policy"):
        facts.append(f"policy {state['policy']}")
    if state.get("studies"):
        facts.append(", ".join(f"{count:,} {split}" for split, count in state["studies"].items()) + " studies")
    if state.get("started"):
        facts.append(f"started {_clock(state['started'])}")
    if state.get("seconds") is not None:
        facts.append(
            f"{duration(state['seconds'])} so far" if state["state"] == "running" else duration(state["seconds"])
        )
        if state["state"] == "running" and state.get("seconds_left") is not None:
            facts.append(f"about {duration(state['seconds_left'])} left")
    if state.get("updated"):
        facts.append(f"updated {_clock(state['updated'])}")
    return facts


def _clock(text: str) -> str:
    try:
        return datetime.datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text


def duration(seconds: float) -> str:
    """Duration in the two largest units.

    Example:
        >>> duration(7_384)
        '2 h 3 min'
    """
    whole = round(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def find_warnings(log: TrainingLog) -> list[str]:
    """Warnings from the last ten rounds and the last validation."""
    limits = (
        ("train/dead_groups", 0.5, "groups have equal rewards and no gradient: raise temperature or group_size."),
        ("train/truncated", 0.2, "completions are truncated: raise max_new_tokens."),
        ("train/nothing_found", 0.5, "completions state no finding: the policy may collapse to a normal report."),
    )
    found = []
    for key, limit, text in limits:
        share = log.last(key, 10)
        if share is not None and share > limit:
            found.append(f"{100 * share:.0f} % of the {text}")
    if log.last("val/reward_diverges"):
        found.append("The reward rises while a validation score that is not part of it falls: it may be exploited.")
    for key, label in (("val/mccs", "MCCS"), ("val/ce_f1", "CE-F1")):
        score, levels = log.last(key), log.constants(key)
        if score is not None and levels and score <= max(levels.values()):
            name = max(levels, key=lambda name: levels[name])
            shares = f"({100 * score:.1f} %) is not above that of the {name} report ({100 * levels[name]:.1f} %)"
            found.append(f"Validation {label} {shares}.")
    return found


def sample_groups(samples: Sequence[dict[str, Any]], most: int = _GROUPS) -> list[dict[str, Any]]:
    """Latest groups of samples.jsonl, newest first, each with its completions by decreasing reward."""
    groups: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for row in samples:
        groups.setdefault((row.get("round"), row.get("id")), []).append(row)
    known = ("round", "id", "completion", "reward", "truncated", "target")
    result = []
    for (number, study), rows in list(groups.items())[: -most - 1 : -1]:
        parts = [key for key in rows[0] if key not in known]
        ordered = sorted(rows, key=lambda row: -(row.get("reward") or 0))
        cells = [
            {
                "text": row.get("completion", ""),
                "truncated": row.get("truncated"),
                "scores": [_score(row.get(key)) for key in ("reward", *parts)],
            }
            for row in ordered
        ]
        heads = ["reward", *parts]
        result.append(
            {"round": number, "id": study, "target": rows[0].get("target", ""), "heads": heads, "rows": cells}
        )
    return result


def _score(value: object) -> str:
    return f"{100 * value:.0f}" if isinstance(value, (int, float)) else "–"


def _table(results: dict[str, Any]) -> dict[str, Any] | None:
    """Table of the tested systems, in percent."""
    systems = results.get("systems")
    if not systems:
        return None
    scores = [score for score in COLUMNS[:4] if score in next(iter(systems.values()))["scores"]]
    rows = [
        (name, [*(format_span(row["scores"][score]) for score in scores), f"{100 * row['distinct']:.0f} %"])
        for name, row in systems.items()
    ]
    if best := results.get("best_constant"):
        own = best["scores"] | {"informedness": dict.fromkeys(("value", "low", "high"), 0.0)}
        rows.append((BEST, [*(format_span(own[score]) for score in scores), "–"]))
    # Results of older versions have no best constant.
    remarked = [*remarks(results), *what_is_best(results)] if "best_constant" in results else []
    numbers = {key: results.get(key) for key in ("num_studies", "margin")}
    return {"head": [*scores, "distinct"], "rows": rows, "remarks": remarked, **numbers}
