"""What a GRPO run on one device measured, and with which settings it ran."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import yaml

PHASES = ("vision", "rollout", "reward", "reference", "policy")
DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def measured(file: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each phase, and lengths, over a run's rounds but the first."""
    with file.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("seconds/policy")][1:]
    if not rows:
        raise SystemExit(f"{file} holds no rounds with seconds/policy: it is not of a GRPO run of two rounds or more.")
    phases = {name: float(np.median([float(row[f"seconds/{name}"]) for row in rows])) for name in PHASES}
    lengths = {name: float(np.mean([float(row[f"train/{name}"]) for row in rows])) for name in ("length", "length_max")}
    return phases, lengths


@dataclasses.dataclass
class Settings:
    """Of the run.

    Args:
        batch_size: Studies of a round.
        group_size: Completions of a study.
        max_new_tokens: Longest completion.
        micro_batch_tokens: Of one pass.
        rank: Of the adapter; 0 without one.
        source: Where these come from, in words.
    """

    batch_size: int
    group_size: int
    max_new_tokens: int
    micro_batch_tokens: int
    rank: int
    source: str


def settings_of(metrics: Path, config: Path | None = None) -> Settings:
    """The settings of the run that wrote a metrics.csv, which holds none itself.

    Args:
        metrics: The file.
        config: The run's configuration; by default the config.yaml beside `metrics`, else the demo's is assumed.
    """
    beside = metrics.with_name("config.yaml")
    file = config or (beside if beside.is_file() else DEMO)
    source = str(config or beside) if file != DEMO else f"{DEMO.parent.name}/{DEMO.name}"
    if file == DEMO and config is None:
        source += f", assumed: there is no {beside}, and no --config"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        model, data = content["model"]["init_args"], content["data"]["init_args"]
        sizes = (model["rollout"]["group_size"], model["max_new_tokens"], model["micro_batch_tokens"])
        rank = (model.get("lora") or {"rank": 0})["rank"]
        return Settings(data["batch_size"], *sizes, rank, source)
    except (KeyError, TypeError) as error:
        raise SystemExit(f"{file} is no whole configuration of a GRPO run ({error}): pass its config.yaml.") from None
