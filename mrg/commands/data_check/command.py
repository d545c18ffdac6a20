"""`python -m mrg data check --config FILE`: checks of a data set before a model is trained on it."""

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
from mrg.commands.data_check import check_splits
from mrg.commands.data_check.page import write_check_page
from mrg.commands.data_check.samples import show_samples
from mrg.commands.data_check.table import format_check
from mrg.commands.lightning import quiet
from mrg.commands.parser import Parser
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.errors import first_names
from mrg.errors import UserError
from mrg.files import make_folder, write_json
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import Labeler

_KEYS = "[--data.init_args.KEY VALUE ...] [--output FOLDER] [--images true|false]"
_JSON, _PAGE = "data_check.json", "data_check.html"


def check(argv: Sequence[str]) -> bool:
    """Check, print, and write the JSON file and the page; returns whether there are errors."""
    quiet()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser = _parser(_other_keys(argv))
    config = parser.parse_args(list(argv))
    if config.data is None:
        raise UserError("There is no data to check: pass a configuration with a `data` section by --config.")
    name = _name(config)
    folder = Path(config.output or Path("data_check", name))
    _check_output(folder)
    objects = parser.instantiate_classes(Namespace(data=config.data, labeler=config.labeler))
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
            "dropped": data.dropped,
            "limits": {split: limit for split, limit in data.limits.items() if limit},
            "config": _as_dict(config.data),
        },
        **check_splits(
            data.splits, objects.labeler or RulesLabeler(), _margin(config), config.images, data.num_workers, _progress
        ),
    }
    _add_messages(result)
    write_json(folder / _JSON, result)
    write_check_page(folder / _PAGE, result, show_samples(result["samples"], data.splits, config.images))
    print(f"\n{format_check(result, str(folder / _JSON))}\n\nPage: {folder / _PAGE}\nResults: {folder / _JSON}")
    return any(row["kind"] == "error" for row in result["messages"])


def _parser(others: Iterable[str] = ()) -> Parser:
    """The parser; only `data` of a configuration is validated, its `others` are accepted unchanged."""
    result = Parser(
        parser_mode="omegaconf+",
        prog="python -m mrg data check",
        usage=f"python -m mrg data check --config FILE {_KEYS}",
        description=__doc__,
    )
    result.add_argument("-c", "--config", action=ActionConfigFile, help="Configuration file in YAML.")
    result.add_lightning_class_args(ReportDataModule, "data", subclass_mode=True, required=False)
    result.add_argument("--labeler", type=Labeler | None, default=None, help="Labeler of reports; rules by default.")
    result.add_argument("--images", type=bool, default=True, help="Read every image; false only checks that it exists.")
    result.add_argument("--output", type=str, default="", help="Folder to write to; data_check/<name> by default.")
    for name in others:
        result.add_argument(f"--{name}", type=Any, default=None, help="Key of a run; ignored.")
    return result


def _other_keys(argv: Sequence[str]) -> list[str]:
    """Keys of the configuration files that belong to a run instead of its data."""
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
            continue  # the parser reports what is wrong with the file
    return [key for key in keys if key not in ("config", "data", "labeler", "images", "output")]


def _name(config: Namespace) -> str:
    """The name of the configuration, or of its data module."""
    name = config.name if isinstance(config.name, str) else ""
    return name if name and "/" not in name else str(config.data.class_path).rpartition(".")[2]


def _margin(config: Namespace) -> float:
    """MCCS's margin in the configuration, so that the baselines have the same scores as in `test`."""
    model = _as_dict(config.model)
    value = model.get("init_args", {}).get("margin", 0.5) if isinstance(model, dict) else 0.5
    return float(value) if isinstance(value, int | float) else 0.5


def _as_dict(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else value


def _check_output(folder: Path) -> None:
    """Check before the work that only the files of an earlier check would be overwritten."""
    make_folder(folder, "--output")
    report, page = folder / _JSON, folder / _PAGE
    if report.exists() or page.exists():
        try:
            is_ours = json.loads(report.read_text(encoding="utf-8"))["command"] == "data check"
        except (OSError, ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise UserError(
                f"{folder} contains a {_JSON} or {_PAGE} that `data check` did not write: choose another --output."
            )


def _add_messages(result: dict[str, Any]) -> None:
    """Messages on the settings: missing files that they leave out, and random subsets."""
    messages: list[dict[str, str]] = result["messages"]
    for setting, names in result["data"]["dropped"].items():
        if names:
            text = f"Missing files are left out, as in a run (data.init_args.{setting}): {len(names):,}: "
            num_errors = sum(row["kind"] == "error" for row in messages)
            messages.insert(num_errors, {"kind": "warning", "text": f"{text}{first_names(names)}."})
    if result["data"]["limits"]:
        limits = ", ".join(f"limit_{split} {limit}" for split, limit in result["data"]["limits"].items())
        messages.append({"kind": "note", "text": f"Only a random subset of the studies was checked ({limits})."})


def _progress(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """A progress bar, on a terminal only."""
    console = Console(stderr=True)
    return track(items, description, total, console=console, transient=True, disable=not console.is_terminal)
