"""Errors whose message is written for the user, and how the command line prints them."""

from __future__ import annotations

import difflib
import sys
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


def install(extra: str) -> str:
    """Return the command that installs an optional extra, for messages; `mrg` is not on PyPI."""
    return f"pip install -e '.[{extra}]' in the checkout"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, for messages: `1 study`, `2 studies`; the plural adds an s by default."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def nearest(word: str, names: Iterable[str]) -> str:
    """Suggest a similar name, as text to append to a message; empty if none is similar."""
    found = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def find_ours(error: BaseException) -> MrgError | None:
    """Find the `MrgError` behind an error: jsonargparse wraps what a constructor raises in an error of its own."""
    if isinstance(error, MrgError):
        return error
    cause = error.__cause__ or error.__context__
    return find_ours(cause) if cause is not None and isinstance(error, ValueError) else None


def one_line(error: BaseException) -> str | None:
    """Return the message of an error as one line, or `None` if the error needs a traceback."""
    ours = find_ours(error)
    if ours is None:
        return None
    # The message of an error from a DataLoader worker is a traceback as text, which ends with type and message.
    text = str(ours).rpartition(f"{type(ours).__module__}.{type(ours).__qualname__}: ")[2]
    return " ".join(text.split())


def print_error(error: BaseException, with_traceback: bool = False) -> None:
    """Print an error to standard error: one line for an error of ours, the traceback for any other.

    Args:
        error: Error that a command has raised.
        with_traceback: Print the traceback above the line. That of code outside of `mrg` is always printed.
    """
    ours = find_ours(error)
    if ours is None or with_traceback:
        traceback.print_exception(error)
    elif isinstance(ours, ExtensionError) and ours.__cause__ is not None:
        traceback.print_exception(ours.__cause__)
    if ours is not None:
        print(f"mrg: {one_line(ours)}", file=sys.stderr)


def where_raised(error: BaseException) -> str:
    """Describe an error by type, message and place: `KeyError: 'missing' (scorers.py, line 3, in bad)`."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"{kind}{f': {text}' if text else ''}{place}"
