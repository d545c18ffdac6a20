"""The state of all ranks in one checkpoint: gathered, and written where the strategy writes."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

from mrg.callbacks.training_loop import RoundLoop
from mrg.errors import RunError
from mrg.files import WriteError
from mrg.modules.ranks import gather
from mrg.run.checkpoints import CheckpointFolder
from mrg.run.rng import rng_state


class CheckpointError(RunError):
    """A checkpoint could not be written."""


@dataclasses.dataclass
class Before:
    """What a failed round has changed although no weight has.

    Args:
        name: Checkpoint of the state after the round before.
        place: See `rounds.py`.
        should_stop: Whether training was to end there.
        rank: What this process has of its own.
        loops: Counters.
    """

    name: str
    place: str
    should_stop: bool
    rank: dict[str, Any]
    loops: dict[str, Any]

    @classmethod
    def now(cls, trainer: L.Trainer, loop: RoundLoop, name: str, place: str) -> Before:
        """The present state, at a boundary."""
        loops = copy.deepcopy(trainer.fit_loop.state_dict())
        return cls(name, place, trainer.should_stop, rank_state(trainer, loop), loops)


def rank_state(trainer: L.Trainer, loop: RoundLoop) -> dict[str, Any]:
    """What each process has of its own: generators, and gradients that wait for more batches."""
    waiting = trainer.accumulate_grad_batches > 1 and loop._should_accumulate()
    own = trainer.lightning_module.named_parameters() if waiting else []
    return {"rng": rng_state(), "gradients": {name: p.grad.cpu() for name, p in own if p.grad is not None}}


def write_checkpoint(
    trainer: L.Trainer, loop: RoundLoop, files: CheckpointFolder, name: str, best: str, before: Before | None = None
) -> None:
    """Write the state of all ranks into one file.

    Args:
        trainer: Of the run.
        loop: Its rounds.
        files: The run's checkpoints.
        name: Of the file.
        best: File of the best checkpoint at this time.
        before: Given where the present round failed before it changed a weight.

    Raises:
        CheckpointError: On all ranks, if it cannot be written.
    """
    problem = ""
    if trainer.is_global_zero:
        try:
            for logger in trainer.loggers:
                logger.save()
        except WriteError as error:
            problem = str(error)
    # Sharded weights are gathered by all ranks.
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    if before is not None:
        checkpoint["loops"]["fit_loop"] = before.loops
    own = rank_state(trainer, loop) if before is None else before.rank
    checkpoint["ranks"] = gather(own, trainer.world_size)
    strategy = trainer.strategy
    parts = isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint
    if parts:
        problem = problem or _write_parts(trainer, files, name, checkpoint)
    if trainer.is_global_zero and not problem:
        try:
            if parts:
                files.take(name, best)
            else:
                files.save(name, checkpoint, best)
        except WriteError as error:
            problem = str(error)
    problem = next(filter(None, gather(problem, trainer.world_size)), "")
    if problem:
        raise CheckpointError(f"The state of this round could not be saved: {problem}")


def _write_parts(trainer: L.Trainer, files: CheckpointFolder, name: str, checkpoint: dict[str, Any]) -> str:
    """Let each rank write its part of sharded weights into one folder; returns what went wrong."""
    folder = files.unfinished(name)
    try:
        if trainer.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
        trainer.strategy.barrier()
        trainer.strategy.save_checkpoint(checkpoint, folder)
    except Exception as error:  # torch gathers the errors of all ranks into one of its own, with tracebacks
        lines = str(error).strip().splitlines()
        return f"{folder} cannot be written ({lines[-1].strip() if lines else type(error).__name__})."
    return ""
