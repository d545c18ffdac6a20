"""Grouped settings of the modules. Each group checks itself when it is built, before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from mrg.errors import UserError
from mrg.log import log
from mrg.modules.policy.precision import check_precision
from mrg.modules.rl.advantage import Scale
from mrg.modules.rl.corpus_f1 import CorpusF1
from mrg.modules.rl.loss import LOSS_TYPES, KLEstimator, LossType, check_loss_options
from mrg.modules.rl.reward import WeightedScorer
from mrg.modules.rollout.colocate import Colocate
from mrg.modules.rollout.vllm_servers import Servers

Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]

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
        seed: Seed of the rollouts, which are a function of (seed, rank, round).
        servers: vLLM servers that sample the completions.
        colocate: vLLM engine in the trainer's process that samples them. Without either, the policy samples itself.
    """

    group_size: int = 8
    temperature: float = 1.0
    resample_dead: int = 0
    seed: int = 0
    servers: Servers | None = None
    colocate: Colocate | None = None

    def __post_init__(self) -> None:
        check_counts(2, "rollout.", group_size=self.group_size)
        check_counts(0, "rollout.", resample_dead=self.resample_dead)
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


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The policy loss and the advantages that it weighs.

    Args:
        type: Loss type, a row of the table in `mrg.modules.rl.loss`.
        clip_low: The ratio is clipped below at 1 - clip_low.
        clip_high: The ratio is clipped above at 1 + clip_high.
        dual_clip: Upper limit of the ratio where the advantage is negative, at least 1 + clip_high.
        advantage_scale: What divides the advantages: the standard deviation of the `"group"`, that of the `"batch"` of
            all ranks, or `"none"`; `"auto"` is `"batch"` with a corpus-F1 reward, otherwise `"group"`.
        aggregation: `"sum_then_normalize"` compares completions by their total reward; `"normalize_then_sum"` first
            normalizes each part of the reward within its group (GDPO).
        mask_truncated: Exclude truncated completions from the loss; they still count in the mean of their group.
    """

    type: LossType = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    advantage_scale: Scale | Literal["auto"] = "auto"
    aggregation: Aggregation = "sum_then_normalize"
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        check_choice("loss.type", self.type, LOSS_TYPES)
        check_choice("loss.advantage_scale", self.advantage_scale, ("auto", *get_args(Scale)))
        check_choice("loss.aggregation", self.aggregation, get_args(Aggregation))
        if self.aggregation == "normalize_then_sum" and self.advantage_scale != "auto":
            raise UserError(
                "model.init_args.loss.aggregation normalize_then_sum divides by the deviations of the group and of the "
                f"batch: set advantage_scale to auto, not {self.advantage_scale}."
            )
        check_loss_options(self.type, self.clip_low, self.clip_high, self.dual_clip, where="model.init_args.loss.")

    def warn_without_effect(self, num_steps: int) -> None:
        """Warn about clipping where each round makes a single step, so that every ratio is 1."""
        if num_steps == 1 and (self.clip_low, self.clip_high, self.dual_clip) != (0.2, 0.2, None):
            log.warning(
                "model.init_args.loss.clip_low, clip_high and dual_clip have no effect: a round makes one step, whose "
                "ratios are all 1 (num_minibatches and num_iterations are 1)."
            )


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """Weights of the parts of the reward.

    Args:
        mccs_weight: Weight of MCCS.
        format_weight: Weight of the format score.
        ce_f1_weight: Weight of the CE-F1 of a single report.
        corpus_f1_weight: Weight of the report's contribution to the F1 of findings over the corpus, for rare findings.
        denial_f1_weight: Weight of the corpus F1 of what is ruled out.
        corpus_f1: Settings of both corpus-F1 parts.
        scorers: Further parts of the reward, each a scorer with a weight.
    """

    mccs_weight: float = 0.75
    format_weight: float = 0.25
    ce_f1_weight: float = 0.0
    corpus_f1_weight: float = 0.0
    denial_f1_weight: float = 0.0
    corpus_f1: CorpusF1 = dataclasses.field(default_factory=CorpusF1)
    scorers: list[WeightedScorer] = dataclasses.field(default_factory=list)


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


def check_counts(least: int = 1, prefix: str = "", **settings: int) -> None:
    """Check that settings are at least `least`; their keys in `model.init_args` start with `prefix`.

    Raises:
        UserError: If a value is too small.
    """
    for name, value in settings.items():
        check_range(f"{prefix}{name}", value, f"at least {least}", value >= least)


def check_range(name: str, value: float, expected: str, fits: bool) -> None:
    """Check that a number is in range.

    Args:
        name: Key in `model.init_args`.
        value: Value of the setting.
        expected: The range in words.
        fits: Whether the value is in range; a comparison with nan is false.

    Raises:
        UserError: If it is not.
    """
    if not fits:
        raise UserError(f"Expected model.init_args.{name} to be {expected}, but got {value}.")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Check that a value is one of the choices.

    Raises:
        UserError: If it is not.
    """
    if value not in choices:
        *most, last = (repr(choice) for choice in choices)
        raise UserError(f"Expected model.init_args.{name} to be {', '.join(most)} or {last}, but got {value!r}.")


def check_lora(lora: Any, policy: str = "", language_model: str = "") -> None:
    """Check the shape of an adapter and that the policy takes one, or another language model; `lora` may be None.

    Raises:
        UserError: If one of its numbers is out of range, or the policy is `"tiny"`.
    """
    if policy == "tiny" and language_model:
        raise UserError(
            "A tiny policy has a language model of its own: set model.init_args.policy to the folder of a policy whose "
            "vision tower is trained, for example runs/iu_small_vision/policy, or language_model to ''."
        )
    if lora is None:
        return
    check_counts(1, "lora.", rank=lora.rank, alpha=lora.alpha)
    check_range("lora.dropout", lora.dropout, "at least 0 and below 1", 0 <= lora.dropout < 1)
    if policy == "tiny":
        raise UserError(
            "A tiny policy starts from random weights and takes no adapter: set model.init_args.policy to a trained "
            "folder, for example runs/demo_sft/policy, or model.init_args.lora to null (and for GRPO kl.reference to "
            "'copy', or kl.coef to 0)."
        )


def check_trainer(trainer: Any, stage: str) -> None:
    """Check the trainer's settings.

    Args:
        trainer: Lightning trainer.
        stage: `"fit"`, or another one, in which clipping has no meaning.

    Raises:
        UserError: If the modules do not support them.
    """
    check_precision(trainer.precision)
    if stage == "fit" and trainer.gradient_clip_val is not None:
        raise UserError(
            "Gradients are clipped to model.init_args.optimizer.max_grad_norm: set that, and leave "
            f"trainer.gradient_clip_val ({trainer.gradient_clip_val}) out."
        )


def check_text_inputs(data: Any, use_indication: bool, use_prior: bool) -> None:
    """Check that at least one study has the inputs that the prompt uses.

    Raises:
        UserError: If no study has one.
    """
    if use_indication and not any(study.indication for part in data.splits.values() for study in part):
        raise UserError("No study has an indication: set model.init_args.use_indication to false.")
    if use_prior and not any(study.prior for part in data.splits.values() for study in part):
        raise UserError(
            "No study has a prior: set model.init_args.use_prior to false, or data.init_args.prior to true."
        )
