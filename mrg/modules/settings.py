"""Grouped settings of the modules. Each group checks itself when it is built, before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from mrg.errors import UserError
from mrg.modules.checks import check_choice, check_counts, check_range
from mrg.modules.rl.loss import KLEstimator
from mrg.modules.rollout.colocate import Colocate
from mrg.modules.rollout.vllm_servers import Servers

OLD_KEYS = {
    "learning_rate": "optimizer.learning_rate",
    "warmup_steps": "optimizer.warmup_steps",
    "decay_steps": "optimizer.decay_steps",
    "weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.max_grad_norm",
    "group_size": "rollout.group_size",
    "temperature": "rollout.temperature",
    "resample_dead": "rollout.resample_dead",
    "seed": "rollout.seed",
    "servers": "rollout.servers",
    "kl_coef": "kl.coef",
    "kl_estimator": "kl.estimator",
    "kl_ratio_correction": "kl.ratio_correction",
    "reference": "kl.reference",
    "loss_type": "loss.type",
    "clip_low": "loss.clip_low",
    "clip_high": "loss.clip_high",
    "dual_clip": "loss.dual_clip",
    "advantage_scale": "loss.advantage_scale",
    "mask_truncated": "loss.mask_truncated",
    "mccs_weight": "reward.mccs_weight",
    "format_weight": "reward.format_weight",
    "ce_f1_weight": "reward.ce_f1_weight",
    "rewards": "reward.scorers",
}
"""Former key of `model.init_args` -> the key that replaced it."""


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How completions are sampled.

    Args:
        group_size: Completions per study.
        temperature: Sampling temperature, > 0.
        resample_dead: How many times groups of equal rewards are sampled again.
        add_reference: Let the reference report take the place of a completion in groups of equal, lower rewards.
        seed: Seed of the rollouts, which are a function of (seed, rank, round).
        overlap: 1 lets servers sample the next round while this one trains, with the policy before its steps; 0 waits.
        servers: vLLM servers that sample the completions.
        colocate: vLLM engine in the trainer's process that samples them. Without either, the policy samples itself.
    """

    group_size: int = 8
    temperature: float = 1.0
    resample_dead: int = 0
    add_reference: bool = False
    seed: int = 0
    overlap: Literal[0, 1] = 0
    servers: Servers | None = None
    colocate: Colocate | None = None

    def __post_init__(self) -> None:
        check_counts(2, "rollout.", group_size=self.group_size)
        check_counts(0, "rollout.", resample_dead=self.resample_dead)
        check_range("rollout.overlap", self.overlap, "0 or 1", self.overlap in (0, 1))
        check_range("rollout.temperature", self.temperature, "above 0", 0 < self.temperature < math.inf)

    @property
    def engine(self) -> Servers | Colocate | None:
        """Settings of the engine that samples in place of the policy, if there is one."""
        return self.servers or self.colocate


@dataclasses.dataclass(frozen=True)
class KLSettings:
    """KL divergence from the reference model, a term of the loss.

    Args:
        coef: Weight of the term; 0 needs no reference model.
        estimator: Estimator of the KL divergence at a token (Schulman, 2020), d = ref_logp - logp: `"k1"` is -d,
            `"k2"` d^2 / 2, `"k3"` exp(d) - d - 1. As a term of the loss, `"k1"` has no effect.
        ratio_correction: Multiply the estimate by the ratio of policy to old policy.
        reference: `"adapter"` is the policy with its adapter off; `"copy"` is a copy of all trained weights at the
            start, for training without an adapter.
    """

    coef: float = 0.04
    estimator: KLEstimator = "k3"
    ratio_correction: bool = False
    reference: Literal["adapter", "copy"] = "adapter"

    def __post_init__(self) -> None:
        check_range("kl.coef", self.coef, "at least 0", 0 <= self.coef < math.inf)
        check_choice("kl.estimator", self.estimator, get_args(KLEstimator))
        check_choice("kl.reference", self.reference, ("adapter", "copy"))

    def check_fixed(self, train_vision: bool, lora: Any, language_model: str = "") -> None:
        """Check that the reference model stays fixed while the policy is trained.

        A copy holds all that is trained, the vision tower too; with the adapter off, a trained tower is still there.

        Raises:
            UserError: If the reference would change with the policy, or is untrained.
        """
        if language_model:
            raise UserError(
                "GRPO cannot start from a new language model, whose projector is untrained: run SFT with it, set "
                "model.init_args.policy to the policy that it saves, and language_model to ''."
            )
        if self.coef and train_vision and lora is not None:
            raise UserError(
                "The reference is the policy with its adapter off, whose vision tower is trained too: set "
                "model.init_args.train_vision to false, kl.coef to 0, or lora to null with kl.reference copy."
            )

    def check_reference(self, has_adapter: bool) -> None:
        """Check that there is a reference model: an adapter to turn off, or a copy.

        Raises:
            UserError: If there is neither.
        """
        if self.coef and not has_adapter and self.reference != "copy":
            raise UserError(
                "The KL term needs a reference: set model.init_args.lora, kl.reference to 'copy', or kl.coef to 0."
            )


def moved_key(key: str) -> str:
    """Name of the new key, to follow the name of a key that has moved; empty if it has not.

    Args:
        key: Key as typed, such as `model.init_args.learning_rate` or `learning_rate`.
    """
    prefix, _, name = key.rpartition(".")
    if name not in OLD_KEYS or prefix.removeprefix("model").removeprefix(".init_args"):
        return ""
    return f"; it is now model.init_args.{OLD_KEYS[name]}"


def check_no_moved_keys(config: Mapping[str, Any], file: Path) -> None:
    """Check that the config.yaml of a run has no keys that have moved since.

    Raises:
        UserError: If it has one.
    """
    for name in (config.get("model") or {}).get("init_args") or {}:
        if moved := moved_key(name):
            raise UserError(f"{file} has a key of an earlier version, model.init_args.{name}{moved}: rename it there.")
