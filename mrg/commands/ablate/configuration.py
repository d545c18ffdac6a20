"""The configuration of an ablation: its arms, seeds and run folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrg.errors import UserError
from mrg.files import parse_yaml, read_config

RECORD = "arm.json"
"""File with the settings of a run, next to its config.yaml."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        config: Configuration for `fit`, relative to the folder of the ablation's own configuration.
        start: Arm whose policy this one starts from; empty if `config` says where to start.
        label: Name in the table and the figure; the arm's name by default.
        set: Keys of the configuration -> values. `"{seed}"` is replaced by the seed.
    """

    config: str
    start: str = ""
    label: str = ""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Content of a file such as `configs/demo_ablation.yaml`.

    Args:
        folder: Folder of the runs and the results.
        seeds: Seeds; each arm has one run for each.
        arms: Name -> arm, in an order in which each arm follows the one that it starts from.
        base: Arm with which the others are compared.
        panels: Title of a panel of the figure -> names of its arms, from top to bottom.
        margin: Margin of the MCCS in the report.
        num_processes: Number of concurrent runs, which share the cores.
        shared: Keys that are set in every arm, before the arm's own.
        quick: Configuration for `fit` -> keys that `--quick` sets.
        configs: Folder of the configurations for `fit`.

    Raises:
        UserError: If a name is not that of an arm, a file does not exist, or a number is out of range.
    """

    folder: Path
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    base: str
    panels: dict[str, list[str]]
    margin: float = 0.5
    num_processes: int = 1
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)
    quick: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    configs: Path = Path()

    def __post_init__(self) -> None:
        if not 1 <= len(self.seeds) <= 10 or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"Expected `seeds` to hold 1 to 10 different numbers, but got {list(self.seeds)}.")
        if self.num_processes < 1:
            raise UserError(f"Expected `num_processes` to be at least 1, but got {self.num_processes}.")
        before: list[str] = [""]
        for name, arm in self.arms.items():
            if arm.start not in before:
                raise UserError(f"Expected arm {name!r} to start from an arm above it, but got {arm.start!r}.")
            if not (self.configs / arm.config).is_file():
                raise UserError(f"Expected `config` of arm {name!r} to be a file, but got {self.configs / arm.config}.")
            before.append(name)
        for where, names in {"base": [self.base], **{f"panels: {k}": v for k, v in self.panels.items()}}.items():
            unknown = [name for name in names if name not in self.arms]
            if unknown:
                raise UserError(f"Expected `{where}` to name arms ({', '.join(self.arms)}), but got {unknown[0]!r}.")

    def with_keys(self, keys: Mapping[str, Any]) -> Ablation:
        """The ablation with keys that every arm sets, in place of its own."""
        arms = {name: dataclasses.replace(arm, set={**arm.set, **keys}) for name, arm in self.arms.items()}
        return dataclasses.replace(self, arms=arms)

    def settings(self, arm: Arm, seed: int) -> dict[str, Any]:
        """All keys that a run sets."""
        keys = {**self.shared, **arm.set}
        return {key: seed if value == "{seed}" else value for key, value in keys.items()}

    def run_folder(self, name: str, seed: int) -> Path:
        """Folder of a run."""
        return self.folder / f"seed{seed}" / name

    def record(self, name: str, seed: int) -> dict[str, Any]:
        """JSON of all that determines a run: keys of the file and the arm, and those of the arm it starts from."""
        arm = self.arms[name]
        record = {"config": read_config(self.configs / arm.config), **self.settings(arm, seed)}
        if arm.start:
            record["start"] = self.record(arm.start, seed)
        values: dict[str, Any] = json.loads(json.dumps(record))
        return values

    def is_complete(self, name: str, seed: int) -> bool:
        """Whether a run has been trained and tested.

        Raises:
            UserError: If it was made with other settings.
        """
        folder = self.run_folder(name, seed)
        if not (folder / RECORD).is_file():
            return False
        old, new = json.loads((folder / RECORD).read_text(encoding="utf-8")), self.record(name, seed)
        if old != new:
            other = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            raise UserError(
                f"Run {folder} was made with other settings ({', '.join(other)}) than the configuration's: delete it, "
                "or choose another --folder."
            )
        return (folder / "predictions.jsonl").is_file()


def parse_keys(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `KEY=VALUE` pairs, with YAML values.

    Raises:
        UserError: If an element is not such a pair.
    """
    import yaml

    wrong = [pair for pair in pairs if not pair.partition("=")[0] or "=" not in pair]
    if wrong:
        raise UserError(f"Expected --set to be followed by KEY=VALUE, but got {wrong[0]!r}.")
    keys = [pair.partition("=")[0] for pair in pairs]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(f"Expected --set to have each key once, but got {repeated[0]!r} more than once.")
    try:
        return {pair.partition("=")[0]: parse_yaml(pair.partition("=")[2]) for pair in pairs}
    except yaml.YAMLError as error:
        raise UserError(f"Expected --set to be followed by KEY=VALUE with a value in YAML, but: {error}.") from None


def load_ablation(path: Path, quick: bool = False) -> Ablation:
    """Read a configuration.

    Args:
        path: YAML file.
        quick: Apply the keys of `quick`, with two seeds and a folder of their own.

    Raises:
        UserError: If the file does not exist or is not the configuration of an ablation.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = parse_yaml(text)
        arms = {name: Arm(**arm) for name, arm in values.pop("arms").items()}
        given = {**values, "folder": Path(values["folder"]), "seeds": tuple(values["seeds"]), "arms": arms}
        ablation = Ablation(**given, configs=path.parent)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Expected {path} to be the configuration of an ablation, but: {reason}.") from error
    if not quick:
        return ablation
    arms = {
        name: dataclasses.replace(arm, set=arm.set | ablation.quick.get(arm.config, {})) for name, arm in arms.items()
    }
    folder = ablation.folder.with_name(f"{ablation.folder.name}-quick")
    return dataclasses.replace(ablation, arms=arms, folder=folder, seeds=ablation.seeds[:2])
