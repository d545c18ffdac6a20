"""Phase times, completion lengths and settings of a GRPO run on one device."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import yaml

PHASES = ("vision", "rollout", "reward", "reference", "policy")
DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def measured(file: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each phase and mean completion lengths, over all rounds but the first."""
    with file.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("seconds/policy")][1:]
    if not rows:
        raise SystemExit(
            f"Expected {file} to be from a GRPO run of at least two rounds, but found no values of seconds/policy."
        )
    phases = {name: float(np.median([float(row[f"seconds/{name}"]) for row in rows])) for name in PHASES}
    lengths = {name: float(np.mean([float(row[f"train/{name}"]) for row in rows])) for name in ("length", "length_max")}
    return phases, lengths


@dataclasses.dataclass
class Settings:
    """Settings of the run.

    Args:
        batch_size: Studies per round.
        group_size: Completions per study.
        max_new_tokens: Length limit of a completion.
        micro_batch_tokens: Tokens per forward and backward pass.
        rank: Rank of the adapter; 0 without one.
        source: Description of the file that they were read from.
    """

    batch_size: int
    group_size: int
    max_new_tokens: int
    micro_batch_tokens: int
    rank: int
    source: str


def settings_of(metrics: Path, config: Path | None = None) -> Settings:
    """Read the settings of the run that wrote a metrics.csv.

    Args:
        metrics: The run's metrics.csv, which contains no settings.
        config: The run's configuration; by default config.yaml in the same folder, or else that of the demo.
    """
    beside = metrics.with_name("config.yaml")
    file = config or (beside if beside.is_file() else DEMO)
    source = str(config or beside) if file != DEMO else f"{DEMO.parent.name}/{DEMO.name}"
    if file == DEMO and config is None:
        source += f", assumed, because {beside} does not exist and --config was not given"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        model, data = content["model"]["init_args"], content["data"]["init_args"]
        sizes = (model["rollout"]["group_size"], model["max_new_tokens"], model["micro_batch_tokens"])
        rank = (model.get("lora") or {"rank": 0})["rank"]
        return Settings(data["batch_size"], *sizes, rank, source)
    except (KeyError, TypeError) as error:
        raise SystemExit(f"Expected {file} to be the config.yaml of a GRPO run, but {error} is missing.") from None
