"""Settings of a run that goes on which are not those that its checkpoint was written with.

A resumed run is the run that was not broken off only where nothing that decides it has changed. Settings that say
where a run's files are, what it prints, when it saves and how long it lasts decide nothing.
"""

from __future__ import annotations

import pydoc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mrg.errors import UserError
from mrg.modules.base import ReportModule

DECIDES_NOTHING = {
    "data.init_args": ("num_workers",),
    "model.init_args": ("vision_cache", "pixel_cache", "rollout.servers"),
    "trainer": (
        "accelerator", "barebones", "default_root_dir", "detect_anomaly", "devices", "enable_autolog_hparams",
        "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "fast_dev_run", "inference_mode",
        "log_every_n_steps", "logger", "max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "num_nodes",
        "num_sanity_val_steps", "profiler",
    ),
}  # fmt: skip
"""Caches hold what would be computed, and completions of servers are repeated by nobody."""

KEPT = ("seed_everything", "model.init_args.optimizer.learning_rate", "model.init_args.optimizer.weight_decay")
"""The checkpoint's own count: it holds the generators, the order of studies, and the optimiser with its rates."""

_SHOWN = 8


def _check_algorithm(saved: str, given: str, run: Path) -> None:
    """Refuse to go on with SFT's checkpoint in GRPO, or the reverse; a class of the user's may derive from either."""
    old, new = (pydoc.locate(path) if path else None for path in (saved, given))
    if not (isinstance(old, type) and isinstance(new, type)):
        return
    if next(kind for kind in old.__mro__ if issubclass(new, kind)) is not ReportModule:
        return
    raise UserError(
        f"The checkpoint is of the run {run}, which trained {old.__name__}, but this run trains {new.__name__}: "
        f"to begin from that run's policy set model.init_args.policy to {run / 'policy'}, and pass no checkpoint."
    )


def changed_settings(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What decides a run and differs between two configurations.

    Args:
        saved: Of the run that wrote the checkpoint, as plain values.
        given: Of the run that goes on.

    Returns:
        Key -> the saved and the given value. Keys that one of them lacks, which another version of mrg may have
        added or removed, are left out.
    """
    old, new = dict(_flat(saved)), dict(_flat(given))
    return {key: (old[key], new[key]) for key in old if key in new and old[key] != new[key] and _decides(key)}


def _flat(config: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value


def _decides(key: str) -> bool:
    if key != "seed_everything" and key.partition(".")[0] not in ("model", "data", "trainer"):
        return False
    return not any(
        key == f"{part}.{name}" or key.startswith(f"{part}.{name}.")
        for part, names in DECIDES_NOTHING.items()
        for name in names
    )


def remarks(changed: Mapping[str, tuple[Any, Any]], config: Path) -> list[str]:
    """What changed settings mean for a run that goes on, one line for each kind.

    Args:
        changed: See `changed_settings`.
        config: File of the saved ones.

    Raises:
        ValueError: If the checkpoint is of another algorithm.
    """
    _check_algorithm(*changed.get("model.class_path", ("", "")), config.parent)
    kept = {key: values for key, values in changed.items() if key in KEPT}
    others = {key: values for key, values in changed.items() if key not in KEPT}
    lines = []
    if kept:
        values = ", ".join(f"{key} {old!r} (not {new!r})" for key, (old, new) in kept.items())
        lines.append(
            f"The checkpoint's own stay: {values}. To change them start a new run from its policy "
            "(model.init_args.policy)."
        )
    if others:
        pairs = [f"{key} {old!r} -> {new!r}" for key, (old, new) in others.items()]
        more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
        lines.append(
            f"Other settings than in {config}: {', '.join(pairs[:_SHOWN])}{more}. "
            "The run goes on with the new ones, so it will not end as it would have."
        )
    return lines
