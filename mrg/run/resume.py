"""Resuming a run: random generators, settings that have changed, the folder as it was, and what is left to train."""

from __future__ import annotations

import dataclasses
import pydoc
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from mrg.errors import UserError
from mrg.files import cut_lines
from mrg.log import log
from mrg.modules.base import ReportModule
from mrg.run.checkpoints import BEST, UNVALIDATED, CheckpointFolder, checkpoint_name

NO_EFFECT = {
    "data.init_args": ("num_workers",),
    "model.init_args": (
        "vision_cache", "pixel_cache", "rollout.servers.adapters", "rollout.servers.attempts",
        "rollout.servers.timeout", "rollout.servers.urls", "rollout.colocate.eager", "rollout.colocate.max_length",
        "rollout.colocate.memory",
    ),
    "trainer": (
        "accelerator", "barebones", "default_root_dir", "detect_anomaly", "devices", "enable_autolog_hparams",
        "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "fast_dev_run", "inference_mode",
        "log_every_n_steps", "logger", "max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "num_nodes",
        "num_sanity_val_steps", "profiler",
    ),
}  # fmt: skip
"""Settings that may change: caches hold what would be computed, and completions of servers are not repeatable."""

WHOLE = ("data.init_args.balance", "model.init_args.reward.normal_bias.condition_weights")
"""Settings whose keys are the user's: one that is added or removed is a change."""

KEPT = ("seed_everything", "model.init_args.optimizer.learning_rate", "model.init_args.optimizer.weight_decay")
"""Settings taken from the checkpoint, which contains the generators, the order of studies and the optimizer."""

_SHOWN = 8


def rng_state() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy, PyTorch and this process's CUDA device, if it has one.

    `torch.load(weights_only=True)` reads them.
    """
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    state = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {k: v.tolist() if k == "key" else v for k, v in numpy["state"].items()}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned; a CUDA state is ignored without a CUDA device."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def changed_settings(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare two configurations in the settings that affect the results of a run.

    Args:
        saved: Configuration of the run that wrote the checkpoint, as plain values.
        given: Configuration of the run that resumes.

    Returns:
        Key -> saved and given value. Keys that only one of them has, which another version of mrg may have added or
        removed, are left out, and so is an adapter that only one of them has: the checkpoint does not fit.
    """
    changed = {key: (old, new) for key, old, new in _pairs(saved, given) if old != new and _has_effect(key)}
    changed.pop("model.init_args.lora", None)
    return changed


def _pairs(saved: Mapping[str, Any], given: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key and both values of the settings that both have; a group is one setting if only one of them has it as such."""
    for key, old in saved.items():
        if key in given:
            new, path = given[key], f"{name}{key}"
            if isinstance(old, Mapping) and isinstance(new, Mapping) and path not in WHOLE:
                yield from _pairs(old, new, f"{path}.")
            else:
                yield path, old, new


def _has_effect(key: str) -> bool:
    if key != "seed_everything" and key.partition(".")[0] not in ("model", "data", "trainer"):
        return False
    return not any(f"{key}.".startswith(f"{part}.{name}.") for part, names in NO_EFFECT.items() for name in names)


def describe_changes(changed: Mapping[str, tuple[Any, Any]], config: Path) -> list[str]:
    """Return one line about the settings that come from the checkpoint, and one about those that have changed.

    Raises:
        UserError: If the checkpoint was written by another algorithm.
    """
    _check_algorithm(*changed.get("model.class_path", ("", "")), config.parent)
    kept = ", ".join(
        f"{key} {old!r} (the configuration says {new!r})" for key, (old, new) in changed.items() if key in KEPT
    )
    pairs = [f"{key} {old!r} -> {new!r}" for key, (old, new) in changed.items() if key not in KEPT]
    lines = []
    if kept:
        lines.append(
            f"Resuming with the checkpoint's values for: {kept}. To change them, start a new run from its policy "
            "(model.init_args.policy)."
        )
    if pairs:
        more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
        lines.append(
            f"Settings that differ from {config}: {', '.join(pairs[:_SHOWN])}{more}. The new values are used, so the "
            "results will differ from those of an uninterrupted run."
        )
    return lines


def _check_algorithm(saved: str, given: str, run: Path) -> None:
    """Refuse to resume SFT's checkpoint in GRPO, or the reverse; a user's class may derive from either."""
    old, new = (pydoc.locate(path) if path else None for path in (saved, given))
    if not (isinstance(old, type) and isinstance(new, type)):
        return
    if next(kind for kind in old.__mro__ if issubclass(new, kind)) is not ReportModule:
        return
    raise UserError(
        f"The checkpoint belongs to the run {run}, which trained {old.__name__}, but this run trains {new.__name__}. "
        f"To start from that run's policy, set model.init_args.policy to {run / 'policy'} and pass no checkpoint."
    )


@dataclasses.dataclass
class Best:
    """The best checkpoint so far.

    Args:
        name: Its file name; empty if there is none.
        score: Its score.
        monitor: Log key of the score.
    """

    name: str
    score: float
    monitor: str


@dataclasses.dataclass
class Resumed:
    """The parts of a checkpoint that are needed after the data have been set up.

    Args:
        path: Path of the checkpoint.
        state: State of `Checkpoints` in it.
        number: Number of rounds completed when it was written.
        rank: State of this process, see `mrg.callbacks.checkpoint.rank_state`.
    """

    path: Path
    state: dict[str, Any]
    number: int
    rank: dict[str, Any]

    @classmethod
    def read(cls, trainer: L.Trainer, checkpoint: dict[str, Any], key: str) -> Resumed:
        """Read them.

        Args:
            trainer: Trainer that resumes.
            checkpoint: Content of the checkpoint.
            key: Key of the state of `Checkpoints` among those of callbacks.

        Raises:
            UserError: If the checkpoint is not one of ours, or was written by more or fewer processes.
        """
        state = checkpoint.get("callbacks", {}).get(key)
        if state is None or "ranks" not in checkpoint:
            raise UserError(
                f"{trainer.ckpt_path} does not contain the state of a run: resume from a round-*.ckpt of "
                "`python -m mrg fit`."
            )
        if len(checkpoint["ranks"]) != trainer.world_size:
            raise UserError(
                f"{trainer.ckpt_path} was written by {len(checkpoint['ranks'])} processes, but this run has "
                f"{trainer.world_size}: use the same number (trainer.devices, trainer.num_nodes)."
            )
        number = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
        return cls(Path(str(trainer.ckpt_path)), state, number, checkpoint["ranks"][trainer.global_rank])

    @property
    def name(self) -> str:
        """File name that the run itself gives to such a checkpoint."""
        return checkpoint_name(self.number, self.state["place"] != UNVALIDATED)

    def is_in(self, files: CheckpointFolder) -> bool:
        """Return whether the checkpoint lies in this folder."""
        return self.path.resolve().parent == files.path.resolve()

    def restore_rank(self, module: L.LightningModule) -> None:
        """Restore the generators and the accumulated gradients of this process, right before the first batch."""
        for name, parameter in module.named_parameters():
            if name in self.rank["gradients"]:
                parameter.grad = self.rank["gradients"][name].to(parameter.device)
        set_rng_state(self.rank["rng"])
        self.rank = {}


def restore_folder(
    folder: Path, files: CheckpointFolder, resumed: Resumed | None, monitor: str, begin: Callable[[], None] | None
) -> Best | None:
    """Restore a run's folder to the time of the checkpoint, and log where the run resumes.

    Args:
        folder: Folder of the run.
        files: Its checkpoints.
        resumed: Checkpoint from which the run resumes; None if it starts from the beginning.
        monitor: Score by which the best checkpoint is chosen from now on.
        begin: Makes room in the folder; called if the folder's own run does not resume.

    Returns:
        The best checkpoint at that time, if it is intact.
    """
    if resumed is None or not resumed.is_in(files):
        if begin is not None:
            begin()
        files.remove_after("")  # a new run, perhaps from another's state
        if resumed is not None:
            log.info(f"Starting {folder} from the state after round {resumed.number} in {resumed.path}.")
        return None
    log.info(f"Resuming after round {resumed.number} from {resumed.path}.")
    best = _restore_best(files, resumed.state, monitor)
    name = "" if best is None else best.name
    if resumed.path.name == resumed.name:
        files.adopt(resumed.name, name)
    if removed := files.remove_after(resumed.name):
        log.info(f"Removed newer checkpoints: {', '.join(removed)}.")
    if name:
        files.set_best(name)
    for file, count in resumed.state["lines"].items():
        left = cut_lines(folder / file, count)
        if left < count:
            log.warning(f"{folder / file} has {left} of the {count} lines written before the checkpoint.")
    return best


def _restore_best(files: CheckpointFolder, state: dict[str, Any], monitor: str) -> Best | None:
    if not state["best"]:
        return None
    if problem := files.problem(state["best"]):
        log.warning(f"{problem} It was the best checkpoint; the next validation chooses a new one.")
        if files.problem(BEST):
            files.remove_best()
        return None
    if state["monitor"] != monitor:
        log.info(f"Keeping the best checkpoint by {state['monitor']} until {monitor} has been logged.")
    return Best(state["best"], state["score"], state["monitor"])


def nothing_left(trainer: L.Trainer) -> str:
    """Return in one line why a run has nothing left to train, and what to change; empty if it has."""
    loop = trainer.fit_loop
    if not loop.skip:
        return ""
    progress: Any = loop.epoch_progress.current
    step, epoch = trainer.global_step, progress.processed
    if -1 < trainer.max_steps <= step:
        reason = f"trainer.max_steps is {trainer.max_steps}: raise it to continue training"
    elif trainer.max_epochs is not None and -1 < trainer.max_epochs <= epoch:
        reason = f"{epoch} of trainer.max_epochs {trainer.max_epochs} are done: raise it to continue training"
    elif trainer.should_stop:
        reason = "it was stopped early (early stopping, or trainer.max_time): start a new run from its policy"
    else:
        reason = "there are no training batches: see trainer.limit_train_batches"
    return f"Nothing is left to train: the run is at step {step}, and {reason}."
