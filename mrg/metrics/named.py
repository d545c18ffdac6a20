"""Scorers and labelers by name, `package.module:name`, for commands and settings."""

from __future__ import annotations

import importlib
from typing import Any

from mrg.errors import MissingPackageError, UserError


def import_named(path: str, what: str, last: str) -> Any:
    """Import what a name stands for.

    Args:
        path: `"package.module:name"`; an attribute of an attribute is separated by a dot.
        what: "scorer" or "labeler", for messages.
        last: What stands behind the colon, for messages.

    Raises:
        ValueError: If the form is another one, or the attribute is missing.
        ImportError: If the module cannot be imported; the message says why.
    """
    module_name, colon, attribute = path.partition(":")
    names = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise UserError(f"Expected a {what} in the form 'package.module:{last}', but got {path!r}.")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        raise MissingPackageError(
            f"The module of {what} {path!r} could not be imported: {type(error).__name__}: {error}"
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise UserError(f"Expected {what} {path!r} to exist, but `{module_name}` has no such attribute {name!r}.")
        found = getattr(found, name)
        module_name += f".{name}"
    return found


def name_of(value: Any) -> str:
    """What to call a scorer or a labeler in messages and results: its `name`, or that of its function or class."""
    return str(getattr(value, "name", None) or getattr(value, "__name__", None) or type(value).__name__)
