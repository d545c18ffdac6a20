"""Checks of single settings, whose messages name the key in `model.init_args`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mrg.errors import UserError


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
