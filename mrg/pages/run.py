"""`runs/<name>/index.html`: how a run stands, made from the files of its folder alone.

`python -m mrg page runs/NAME` makes it again at any time.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrg.pages.page import render, write_page
from mrg.pages.run_charts import latest, run_charts
from mrg.pages.run_log import RunLog
from mrg.run.checkpoint_file import is_outdated

PAGE = "index.html"
FILES = {
    "gallery.html": "every study, what was written, what is right, missed and invented",
    "gallery-predict.html": "every study of a prediction",
    "results.json": "scores in every convention, with intervals",
    "predictions.jsonl": "reports of the test split",
    "predict.jsonl": "reports without scores",
    "samples.jsonl": "completions of some rounds",
    "metrics.csv": "scores by step",
    "config.yaml": "the configuration",
    "checkpoints": "best.ckpt and the last rounds",
    "policy": "the best policy, for transformers or the next run",
    "log.txt": "what was printed",
}
_GROUPS = 4
"""How many groups of sampled completions are shown."""


def write_run_page(folder: Path) -> Path:
    """Make the page anew.

    Returns:
        Its path.

    Raises:
        ValueError: If the folder is no run's.
    """
    log = RunLog.read(folder)
    write_page(folder / PAGE, "run.html", **_values(log))
    return folder / PAGE


def run_page(log: RunLog) -> str:
    """The page as text."""
    return render("run.html", **_values(log))


def _values(log: RunLog) -> dict[str, Any]:
    state = log.state
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
        "groups": sample_groups(log.samples),
        "table": _table(log.results),
        "folder": str(log.folder),
        "outdated": is_outdated(log.folder, log.results),
        "files": [(name, what) for name, what in FILES.items() if (log.folder / name).exists()],
        "config": log.config,
    }


def _facts(log: RunLog) -> list[str]:
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
        facts.append(f"page of {_clock(state['updated'])}")
    return facts


def _clock(text: str) -> str:
    try:
        return datetime.datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text


def duration(seconds: float) -> str:
    """Seconds as people say them.

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


def find_warnings(log: RunLog) -> list[str]:
    """What someone who looks at the run should know, from its last ten rounds and its last validation."""
    found = []
    dead, truncated = log.last("train/dead_groups", 10), log.last("train/truncated", 10)
    nothing, mccs = log.last("train/nothing_found", 10), log.last("val/mccs")
    normal = (log.state.get("constant_normal") or {}).get("val/mccs")
    if dead is not None and dead > 0.5:
        found.append(f"{dead:.0%} of the groups have equal rewards and teach nothing: raise temperature or group_size.")
    if truncated is not None and truncated > 0.2:
        found.append(f"{truncated:.0%} of the completions are cut off: raise max_new_tokens.")
    if nothing is not None and nothing > 0.5:
        found.append(f"{nothing:.0%} of the completions find nothing: the policy may be learning the normal report.")
    if mccs is not None and normal is not None and mccs <= normal:
        found.append(f"Validation MCCS ({mccs:.3f}) is not above that of the constant normal report ({normal:.3f}).")
    return found


def sample_groups(samples: Sequence[dict[str, Any]], most: int = _GROUPS) -> list[dict[str, Any]]:
    """The latest groups of samples.jsonl, newest first, each with its completions by falling reward."""
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
    return f"{value:.2f}" if isinstance(value, (int, float)) else "–"


def _table(results: dict[str, Any]) -> dict[str, Any] | None:
    """The test's systems by a few scores, in percent points."""
    systems = results.get("systems")
    if not systems:
        return None
    scores = [s for s in ("MCCS", "CE-F1 micro-13+", "CE-F1 macro-13+") if s in next(iter(systems.values()))["scores"]]
    rows = []
    for name, row in systems.items():
        cells = [_interval(row["scores"][score]) for score in scores]
        rows.append((name, [*cells, f"{100 * row['distinct']:.0f} %"]))
    head = [*scores, "distinct"]
    return {"head": head, "rows": rows, "num_studies": results.get("num_studies"), "margin": results.get("margin")}


def _interval(score: dict[str, float]) -> str:
    value, low, high = (f"{100 * score[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def main(args: Sequence[str]) -> None:
    """`python -m mrg page runs/NAME ...`."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: python -m mrg page RUN [RUN ...]\n\nMake RUN/index.html anew from the files of a run's folder.")
        raise SystemExit(0 if args else 2)
    for folder in args:
        print(write_run_page(Path(folder)))
