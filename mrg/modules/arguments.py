"""The parts of a module in checkpoints: arguments, from which it can be rebuilt, and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentParser
from torch import nn

from mrg.errors import UserError

T = TypeVar("T")


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert arguments to values that `torch.load(weights_only=True)` reads; dataclasses become dicts.

    Args:
        arguments: Name -> value; names with a leading underscore are Lightning's own and are left out.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = vars(value)
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)

    return {name: plain(value) for name, value in arguments.items() if not name.startswith("_")}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU.

    Raises:
        UserError: If it is sharded or does not hold the arguments of its module.
    """
    if path.is_dir():
        raise UserError(f"{path} is a sharded checkpoint, which only a trainer can load: load the folder `policy`.")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if "hyper_parameters" not in checkpoint:
        raise UserError(f"{path} does not hold the module's arguments: it was written by an earlier version of mrg.")
    return checkpoint


def build_module(kind: type[T], arguments: Mapping[str, Any], given: Mapping[str, Any]) -> T:
    """Build a module from the arguments in a checkpoint."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "module", skip={*given, "labeler"}, instantiate=False, fail_untyped=False)
    kept = {name: value for name, value in arguments.items() if name not in given}
    built = parser.instantiate_classes(parser.parse_object({"module": kept})).module
    return kind(**vars(built), **given)


def saved_shapes(module: nn.Module, statistics: bool) -> dict[str, torch.Size]:
    """Names and shapes of what a checkpoint holds.

    Args:
        module: Module with trained and frozen weights.
        statistics: Whether it also holds the running statistics of batch norms.
    """
    saved = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
    if statistics:
        saved |= {name: b.shape for name, b in module.named_buffers() if ".running_" in name}
    return saved
