"""Silent effects of a configuration: lists that replace each other, and limits that results do not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrg.errors import UserError
from mrg.files import read_config

LIMITS = {"validate": "val", "fit": "val", "test": "test", "predict": "predict"}
"""Command -> part of the name of Lightning's limit on the batches that it scores."""


def replaced_lists(files: Sequence[Path]) -> list[str]:
    """One sentence for each list in a configuration file that a later file replaces.

    Args:
        files: Configuration files in the order in which they are read.
    """
    taken: dict[str, tuple[Path, list[Any]]] = {}
    found = []
    for path in files:
        for key, value in _lists(read_config(path) if path.is_file() else {}):
            earlier, old = taken.get(key, (path, value))
            if value and any(entry not in value for entry in old):
                found.append(
                    f"The list {key} of {path} replaces that of {earlier}; it does not extend it. Repeat the entries "
                    "that you want to keep."
                )
            taken[key] = path, value
    return found


def _lists(value: object, key: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Lists in a configuration by their dotted key, except those of plain numbers."""
    if isinstance(value, list) and not all(isinstance(entry, int | float) for entry in value):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _lists(part, f"{key}.{name}".lstrip("."))


def check_limits(command: str, trainer: Any) -> None:
    """Reject Lightning's limits on scored batches: they take the first ones, which results do not show.

    Raises:
        UserError: If a limit is set; 0 for no validation during training is none.
    """
    split = LIMITS.get(command)
    if split is None:
        return
    value = getattr(trainer, name := f"limit_{split}_batches", None)
    whole = value is None or (isinstance(value, float) and value == 1)
    if not whole and not (command == "fit" and value == 0):
        instead = "test" if split == "predict" else split
        raise UserError(
            f"trainer.{name} ({value}) would score the first studies only, as if they were all: set "
            f"data.init_args.limit_{instead}, a random subset whose size is part of the results."
        )
    if command != "fit" and trainer.fast_dev_run:
        raise UserError("trainer.fast_dev_run would score a few batches as if they were all: set it for `fit` only.")
