"""Engines other than the policy itself that sample rollouts: which one, and whether it fits the rest of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import lightning as L

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.log import log
from mrg.modules.policy.policy import Policy
from mrg.modules.rollout.colocate import WHERE, ColocatedEngine, check_version
from mrg.modules.rollout.sampling import Rollout
from mrg.modules.rollout.vllm import NO_ADAPTER, connect
from mrg.strategy import FSDP2

if TYPE_CHECKING:
    from mrg.modules.settings import RolloutSettings


class Engine(Protocol):
    """An engine that samples rollouts with the policy's adapter; its sampling is not repeated bit for bit."""

    version: str
    """Name and version, which checkpoints record."""

    def synchronize(self, round_index: int, trainer: L.Trainer) -> None:
        """Give the engine the policy's adapter."""

    def sample(
        self, batch: Batch, seeds: Mapping[int, int], group_size: int, max_new_tokens: int, temperature: float
    ) -> Rollout:
        """Sample `group_size` completions per study; `seeds` maps the index of a study to its seed."""


def check_engine(
    rollout: RolloutSettings, lora: Any, load_in_4bit: bool, train_vision: bool, language_model: str = ""
) -> None:
    """Check that settings fit the engine, before anything is loaded.

    Raises:
        UserError: If weights other than an adapter are trained, if the frozen ones are not those of the checkpoint, or
            if there are two engines.
    """
    if rollout.servers is not None and rollout.colocate is not None:
        raise UserError("rollout.servers and rollout.colocate are mutually exclusive: set one of them to null.")
    if rollout.servers is not None and lora is None:
        raise UserError(NO_ADAPTER)
    if rollout.overlap and rollout.servers is None:
        where = "the engine in this process" if rollout.colocate is not None else "the policy itself"
        raise UserError(
            f"rollout.overlap requires servers, which sample while the policy trains; {where} cannot: set "
            "model.init_args.rollout.servers, or overlap to 0."
        )
    if rollout.overlap and rollout.servers is not None and rollout.servers.correction == "none":
        raise UserError(
            "rollout.overlap trains on completions of an older policy, which only a correction makes unbiased: set "
            "model.init_args.rollout.servers.correction to truncate, mask or sequence_mask, or overlap to 0."
        )
    if rollout.colocate is not None and lora is None:
        raise UserError(
            f"{WHERE} receives an adapter and never whole weights: set model.init_args.lora, or rollout.colocate "
            "to null."
        )
    where = "servers" if rollout.colocate is None else "colocate"
    others = {"load_in_4bit": (load_in_4bit and where == "colocate", "false"), "train_vision": (train_vision, "false"),
              "language_model": (language_model, "''")}  # fmt: skip
    for name, (is_set, unset) in others.items():
        if is_set and rollout.engine is not None:
            raise UserError(
                f"model.init_args.rollout.{where} samples with the weights of the checkpoint and the adapter alone: "
                f"set model.init_args.{name} to {unset}, or rollout.{where} to null."
            )


def check_place(rollout: RolloutSettings, trainer: L.Trainer) -> None:
    """Check that a colocated engine runs here, before anything is loaded.

    Raises:
        UserError: If vLLM is missing or of another version, or the strategy shards the weights.
    """
    if rollout.colocate is None:
        return
    if isinstance(trainer.strategy, FSDP2):
        raise UserError(
            f"{WHERE} keeps a whole copy of the weights on every GPU, which FSDP2 avoids: set trainer.strategy to ddp, "
            "or use rollout.servers."
        )
    check_version()


def connect_engine(
    rollout: RolloutSettings, policy: Policy, trainer: L.Trainer, source: str, num_images: int
) -> Engine | None:
    """Connect to the servers, start the colocated engine, or return None if the policy samples itself.

    Args:
        rollout: Settings of the rollout.
        policy: The policy.
        trainer: Trainer of the run.
        source: Checkpoint of the policy's base model.
        num_images: Largest number of images of a study.

    Raises:
        UserError: If an engine does not meet the requirements.
    """
    if rollout.servers is not None:
        return connect(rollout.servers, policy, trainer)
    if rollout.colocate is not None:
        return ColocatedEngine(rollout.colocate, policy, source, num_images, trainer)
    return None


def note_engine(saved: str | None, engine: Engine | None) -> None:
    """Log a note if another engine sampled the rounds before a checkpoint than will sample those after it.

    Args:
        saved: Engine that the checkpoint records, empty for the policy itself; None if it records none.
        engine: Engine of the run that resumes.
    """
    if engine is not None and saved is not None and saved != engine.version:
        log.info("Completions so far were sampled by %s, from now on by %s.", saved or "the policy", engine.version)
