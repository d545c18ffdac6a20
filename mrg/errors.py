"""Errors whose message is written for the user, and how the command line prints them."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable


class MrgError(Exception):
    """Base class of errors whose message is complete without a traceback; never raised itself."""


class UserError(MrgError, ValueError):
    """A setting, an argument or a file is wrong; the command exits with 2."""


class UserTypeError(UserError, TypeError):
    """An argument has the wrong type."""


class NotFoundError(UserError, FileNotFoundError):
    """A file or folder that a setting names does not exist."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed, or code that a setting names cannot be imported."""


class RunError(MrgError, RuntimeError):
    """A run had to stop, through no mistake in its settings; the command exits with 1."""


class ExtensionError(RunError):
    """Code outside of `mrg`, such as a scorer or a labeler, failed; its traceback is printed as well."""


def nearest(word: str, names: Iterable[str]) -> str:
    """Suggestion of a similar name, to follow one that is not known; empty if none is similar."""
    found = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def one_line(error: BaseException) -> str | None:
    """Message of an error as one line, or `None` if the error needs a traceback.

    The error may be wrapped: jsonargparse raises its own for what a constructor raises. An error that was raised in a
    worker of a DataLoader carries the worker's traceback in its message, of which the last line is taken.
    """
    if not isinstance(error, MrgError):
        cause = error.__cause__ or error.__context__
        return one_line(cause) if cause is not None and isinstance(error, ValueError) else None
    text = str(error).strip()
    if text.startswith("Caught "):
        text = re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
    return " ".join(text.split())


def where_raised(error: BaseException) -> str:
    """Type, message and place of an error in one line: `KeyError: 'missing' (scorers.py, line 3, in bad)`."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"{kind}{f': {text}' if text else ''}{place}"
