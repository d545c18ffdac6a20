"""Scorers and labelers imported by name, `package.module:name`, for commands and settings."""

from __future__ import annotations

import importlib
from typing import Any

from mrg.errors import MissingPackageError, UserError, where_raised


def import_named(path: str, kind: str, example: str) -> Any:
    """Import an object by name.

    Args:
        path: `"package.module:name"`; attributes of attributes are separated by dots.
        kind: "scorer" or "labeler", for messages.
        example: Placeholder for the part after the colon, for messages.

    Raises:
        UserError: If the name has another form, or the attribute does not exist.
        MissingPackageError: If the module cannot be imported; the message says why.
    """
    module_name, colon, attribute = path.partition(":")
    names = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise UserError(f"Expected a {kind} in the form 'package.module:{example}', but got {path!r}.")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        raise MissingPackageError(
            f"The module of {kind} {path!r} could not be imported: {where_raised(error)}"
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise UserError(f"Expected {kind} {path!r} to exist, but `{module_name}` has no such attribute {name!r}.")
        found = getattr(found, name)
        module_name += f".{name}"
    return found


def name_of(value: Any) -> str:
    """Name of a scorer or labeler in messages and results: its `name`, or that of its function or class."""
    return str(getattr(value, "name", None) or getattr(value, "__name__", None) or type(value).__name__)
