"""Errors about data sets, and what their messages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mrg.errors import NotFoundError, UserError


class DataError(UserError):
    """The content of a data set cannot be used; the message names the file, the finding and the remedy."""


class DataNotFoundError(NotFoundError):
    """A file or folder of a data set does not exist; the message names the path, the setting and the remedy."""


class ImageReadError(UserError):
    """An image file is missing, truncated, too large or not an image; the message is one line that names the file."""


class DecoderMissingError(ImageReadError):
    """Reading an image needs an optional package; such images are never skipped. The message names the pip command."""


def first_names(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list, for an error of one line."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def check_choices(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check arguments that are annotated as `Literal`, as the command line does.

    Args:
        function: Function whose signature lists the choices.
        values: Values by argument name; other names are ignored.

    Raises:
        UserError: If a value is not one of the choices.
    """
    for name, hint in get_type_hints(function).items():
        if get_origin(hint) is Literal and values[name] not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise UserError(f"Expected argument `{name}` to be one of {choices}, but got {values[name]!r}.")
