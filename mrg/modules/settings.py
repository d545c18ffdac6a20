"""Settings of the modules that are refused before anything is loaded, in one line with their name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mrg.modules.advantage import SCALES


def check_counts(**settings: tuple[int, int]) -> None:
    """Refuse numbers that are too small.

    Args:
        **settings: Name -> its value and the least that it may be.

    Raises:
        ValueError: If one is smaller.
    """
    for name, (value, least) in settings.items():
        if value < least:
            raise ValueError(f"Expected model.init_args.{name} to be at least {least}, but got {value}.")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuse a word that is none of the choices.

    Raises:
        ValueError: If it is none.
    """
    if value not in choices:
        *most, last = (repr(choice) for choice in choices)
        raise ValueError(f"Expected model.init_args.{name} to be {', '.join(most)} or {last}, but got {value!r}.")


def check_sampling(temperature: float, advantage_scale: str) -> None:
    """Refuse what rollouts and advantages cannot be made with.

    Raises:
        ValueError: If one is out of range.
    """
    if temperature <= 0:
        raise ValueError(f"Expected model.init_args.temperature to be above 0, but got {temperature}.")
    check_choice("advantage_scale", advantage_scale, SCALES)


def check_reference(reference: str, kl_coef: float, train_vision: bool) -> None:
    """Refuse a reference that would move with the policy.

    Raises:
        ValueError: If it would, or there is no such reference.
    """
    if kl_coef and train_vision:
        raise ValueError(
            "The reference shares the vision tower: set model.init_args.train_vision to false, or kl_coef to 0."
        )
    check_choice("reference", reference, ("adapter", "copy"))


def check_precision(precision: str) -> None:
    """Refuse a precision whose gradients are scaled.

    Raises:
        ValueError: If they are.
    """
    if precision == "16-mixed":
        raise ValueError("Gradients are clipped before they are unscaled: use trainer.precision bf16-mixed or 32-true.")


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
        raise ValueError("No study has an indication: set model.init_args.use_indication to false.")
    if use_prior and not any(study.prior for part in data.splits.values() for study in part):
        raise ValueError(
            "No study has a prior: set model.init_args.use_prior to false, or data.init_args.prior to true."
        )
