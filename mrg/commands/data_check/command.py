"""`python -m mrg data check --config FILE`: what should be known of a data set before a model is trained on it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, Namespace, set_parsing_settings
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import track
from yaml import YAMLError

import mrg
from mrg.commands.data_check.check import check_splits
from mrg.commands.data_check.page import write_check_page
from mrg.commands.data_check.table import format_check
from mrg.commands.lightning import quiet
from mrg.commands.parser import Parser
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.errors import first_names
from mrg.errors import UserError
from mrg.files import make_folder, write_json
from mrg.metrics.labelers.base import Labeler
from mrg.metrics.labelers.rules import RulesLabeler

USAGE = (
    "python -m mrg data check --config FILE [--data.init_args.KEY VALUE ...] [--output FOLDER] [--images true|false]"
)

_JSON, _PAGE = "data_check.json", "data_check.html"


def run(argv: Sequence[str]) -> int:
    """Check, print, and write the JSON and the page.

    Returns:
        1 where an image is missing or unreadable, an id stands twice or a study has no image; otherwise 0.
    """
    quiet()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    reader = parser(_other_keys(argv))
    config = reader.parse_args(list(argv))
    if config.data is None:
        raise UserError("No data to check: name a configuration with a `data` section by --config.")
    name = _name(config)
    folder = Path(config.output or Path("data_check", name))
    _guard(folder)
    objects = reader.instantiate_classes(Namespace(data=config.data, labeler=config.labeler))
    data: ReportDataModule = objects.data
    data.checking = True
    description = data.describe()
    print(description, flush=True)
    result = {
        "mrg": mrg.__version__,
        "command": "data check",
        "name": name,
        "data": {
            "description": description,
            "removed": data.removed,
            "limits": {split: limit for split, limit in data.limits.items() if limit},
            "config": _plain(config.data),
        },
        **check_splits(
            data.splits, objects.labeler or RulesLabeler(), _margin(config), config.images, data.num_workers, _progress
        ),
    }
    _add_dropped(result, data.dropped)
    _add_limits(result)
    write_json(folder / _JSON, result)
    write_check_page(folder / _PAGE, result)
    print(f"\n{format_check(result, str(folder / _JSON))}\n\nPage: {folder / _PAGE}\nAll of it: {folder / _JSON}")
    return int(any(row["kind"] == "error" for row in result["remarks"]))


def parser(others: Iterable[str] = ()) -> Parser:
    """The arguments; of a configuration only `data` is looked into, its `others` are taken as they are."""
    result = Parser(parser_mode="omegaconf+", prog="python -m mrg data check", usage=USAGE, description=__doc__)
    result.add_argument("-c", "--config", action=ActionConfigFile, help="a configuration file in YAML")
    result.add_lightning_class_args(ReportDataModule, "data", subclass_mode=True, required=False)
    result.add_argument("--labeler", type=Labeler | None, default=None, help="labels reports; by rules by default")
    result.add_argument("--images", type=bool, default=True, help="read every image; false only looks if it is there")
    result.add_argument("--output", type=str, default="", help="folder to write; data_check/<name> by default")
    for name in others:
        result.add_argument(f"--{name}", type=Any, default=None, help="of a run; not looked at")
    return result


def _other_keys(argv: Sequence[str]) -> list[str]:
    """The keys of the configuration files named that belong to a run, not to its data."""
    files = [
        word.partition("=")[2] or following
        for word, following in itertools.zip_longest(argv, argv[1:], fillvalue="")
        if word in ("-c", "--config") or word.startswith("--config=")
    ]
    keys: dict[str, None] = {"name": None, "model": None}
    for file in files:
        try:
            keys.update(dict.fromkeys(map(str, OmegaConf.load(file))))
        except (OSError, ValueError, OmegaConfBaseException, YAMLError):
            continue  # what is wrong with the file, the parser says
    return [key for key in keys if key not in ("config", "data", "labeler", "images", "output")]


def _name(config: Namespace) -> str:
    """The configuration's name, or that of its data module."""
    name = config.name if isinstance(config.name, str) else ""
    return name if name and "/" not in name else str(config.data.class_path).rpartition(".")[2]


def _margin(config: Namespace) -> float:
    """MCCS's margin in the configuration, so that the baselines' scores are those that `test` prints."""
    model = _plain(config.model)
    value = model.get("init_args", {}).get("margin", 0.5) if isinstance(model, dict) else 0.5
    return float(value) if isinstance(value, int | float) else 0.5


def _plain(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else value


def _guard(folder: Path) -> None:
    """Write only where nothing is, or an earlier check, and say so before the work."""
    make_folder(folder, "--output")
    report, page = folder / _JSON, folder / _PAGE
    if report.exists() or page.exists():
        try:
            is_ours = json.loads(report.read_text(encoding="utf-8"))["command"] == "data check"
        except (OSError, ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise UserError(f"{folder} holds a {_JSON} or {_PAGE} that no check wrote: choose another --output.")


def _add_dropped(result: dict[str, Any], dropped: dict[str, list[str]]) -> None:
    """Files that are not there, which no table of what was read can show."""
    result["data"]["dropped"] = dropped
    for setting, names in dropped.items():
        if names:
            text = f"Files that are not there, left out as in a run (data.init_args.{setting}): {len(names):,}: "
            result["remarks"].insert(
                _place(result["remarks"]), {"kind": "warning", "text": text + first_names(names) + "."}
            )


def _place(remarks: Sequence[dict[str, str]]) -> int:
    """Before the first warning."""
    return sum(row["kind"] == "error" for row in remarks)


def _add_limits(result: dict[str, Any]) -> None:
    limits = result["data"]["limits"]
    if limits:
        named = ", ".join(f"limit_{split} {limit}" for split, limit in limits.items())
        text = f"The configuration takes a part of a split, drawn at random ({named}); the others were not checked."
        result["remarks"].append({"kind": "note", "text": text})


def _progress(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    return track(items, description, total, console=console, transient=True, disable=not console.is_terminal)
