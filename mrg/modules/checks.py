"""Checks of settings, whose messages name the key in `model.init_args`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mrg.errors import UserError
from mrg.modules.policy.precision import check_precision


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
