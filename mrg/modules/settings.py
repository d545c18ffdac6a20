"""Settings of the modules that are refused before anything is loaded, in one line with their name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from typing import Any

from mrg.errors import UserError
from mrg.modules.policy.precision import check_precision
from mrg.modules.rl.advantage import SCALES


def check_counts(**settings: tuple[int, int]) -> None:
    """Refuse numbers that are too small.

    Args:
        **settings: Name -> its value and the least that it may be.

    Raises:
        ValueError: If one is smaller.
    """
    for name, (value, least) in settings.items():
        if value < least:
            raise UserError(f"Expected model.init_args.{name} to be at least {least}, but got {value}.")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuse a word that is none of the choices.

    Raises:
        ValueError: If it is none.
    """
    if value not in choices:
        *most, last = (repr(choice) for choice in choices)
        raise UserError(f"Expected model.init_args.{name} to be {', '.join(most)} or {last}, but got {value!r}.")


def check_sampling(temperature: float, advantage_scale: str) -> None:
    """Refuse what rollouts and advantages cannot be made with.

    Raises:
        ValueError: If one is out of range.
    """
    if temperature <= 0:
        raise UserError(f"Expected model.init_args.temperature to be above 0, but got {temperature}.")
    check_choice("advantage_scale", advantage_scale, SCALES)


def check_reference(reference: str, kl_coef: float, train_vision: bool, lora: Any) -> None:
    """Refuse a reference that would move with the policy.

    A copy holds all that is trained, the vision tower too; with the adapter off, the trained tower is still there.

    Raises:
        ValueError: If it would, there is no such reference, or the KL term has a negative weight.
    """
    check_range("kl_coef", kl_coef, "at least 0", 0 <= kl_coef < math.inf)
    check_choice("reference", reference, ("adapter", "copy"))
    if kl_coef and train_vision and lora is not None:
        raise UserError(
            "The reference is the policy with its adapter off, whose vision tower is trained too: set "
            "model.init_args.train_vision to false, kl_coef to 0, or lora to null with reference copy."
        )


def check_range(name: str, value: float, expected: str, fits: bool) -> None:
    """Refuse a number that is out of range.

    Args:
        name: Of the setting.
        value: Its value.
        expected: The range in words.
        fits: Whether the value is in it; a comparison is false for nan.

    Raises:
        ValueError: If it is not.
    """
    if not fits:
        raise UserError(f"Expected model.init_args.{name} to be {expected}, but got {value}.")


def check_optimiser(
    learning_rate: float, warmup_steps: int, decay_steps: int, weight_decay: float, max_grad_norm: float
) -> None:
    """Refuse an optimiser that would train nothing, or the wrong way.

    Raises:
        ValueError: If one is out of range, or the rate would fall to 0 before it has risen.
    """
    check_range("learning_rate", learning_rate, "above 0", 0 < learning_rate < math.inf)
    check_range("weight_decay", weight_decay, "at least 0", 0 <= weight_decay < math.inf)
    check_range("max_grad_norm", max_grad_norm, "above 0", max_grad_norm > 0)
    check_counts(warmup_steps=(warmup_steps, 0), decay_steps=(decay_steps, 0))
    if 0 < decay_steps <= warmup_steps:
        raise UserError(
            f"Expected model.init_args.decay_steps to be 0 or above warmup_steps ({warmup_steps}), but got "
            f"{decay_steps}: the learning rate would fall to 0 before it has risen."
        )


def check_lora(lora: Any) -> None:
    """Refuse an adapter that would change nothing; `lora` may be None.

    Raises:
        ValueError: If one of its numbers is out of range.
    """
    if lora is not None:
        check_counts(**{"lora.rank": (lora.rank, 1), "lora.alpha": (lora.alpha, 1)})
        check_range("lora.dropout", lora.dropout, "at least 0 and below 1", 0 <= lora.dropout < 1)


def check_trainer(trainer: Any, stage: str) -> None:
    """Refuse settings of the trainer that the modules do not know.

    Args:
        trainer: Lightning's.
        stage: `"fit"`, or another, in which clipping is of no meaning.

    Raises:
        ValueError: If there are any.
    """
    check_precision(trainer.precision)
    if stage == "fit" and trainer.gradient_clip_val is not None:
        raise UserError(
            "Gradients are scaled down to model.init_args.max_grad_norm: set that, and leave trainer.gradient_clip_val "
            f"({trainer.gradient_clip_val}) out."
        )


def warn_of_idle_clips(num_steps: int, options: dict[str, Any]) -> None:
    """Warn of clips that are set where each round makes one step, so that every ratio is 1.

    Args:
        num_steps: Optimiser steps of a round.
        options: Of `grpo_loss`.
    """
    default = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    if num_steps == 1 and any(options[name] != value for name, value in default.items()):
        warnings.warn(
            "model.init_args.clip_low, clip_high and dual_clip have no effect: a round makes one step, whose ratios "
            "are all 1 (num_minibatches and num_iterations are 1).",
            stacklevel=2,
        )


def check_text_inputs(data: Any, use_indication: bool, use_prior: bool) -> None:
    """Refuse to ask for what no study has.

    Args:
        data: The data module, set up.
        use_indication: Whether indications are asked for.
        use_prior: Whether earlier studies are.

    Raises:
        ValueError: If no study has one.
    """
    if use_indication and not any(study.indication for part in data.splits.values() for study in part):
        raise UserError("No study has an indication: set model.init_args.use_indication to false.")
    if use_prior and not any(study.prior for part in data.splits.values() for study in part):
        raise UserError(
            "No study has a prior: set model.init_args.use_prior to false, or data.init_args.prior to true."
        )
