"""The package's logger: notes and warnings of all commands go through `logging.getLogger("mrg")`.

What a command is asked for (a table, a path, a report) is printed to standard output; everything else is logged. As a
library `mrg` configures nothing; the command line calls `configure`, which writes to standard error.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

log = logging.getLogger("mrg")
log.addHandler(logging.NullHandler())


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time, so that redirections are respected."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The stream that is written to."""
        return sys.stderr


class _FirstRank(logging.Filter):
    """Passes records of the first rank alone."""

    rank: Callable[[], int] = staticmethod(lambda: 0)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this process logs."""
        return self.rank() == 0


class _Format(logging.Formatter):
    """The message alone; a warning and an error say what they are."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.capitalize()}: {text}"


_first_rank = _FirstRank()


def configure(level: int = logging.INFO) -> None:
    """Write the package's records to standard error, once for all ranks; calling it again changes the level alone."""
    log.setLevel(level)
    if not any(isinstance(handler, _StandardError) for handler in log.handlers):
        handler = _StandardError()
        handler.setFormatter(_Format())
        handler.addFilter(_first_rank)
        log.addHandler(handler)


def set_rank(rank: Callable[[], int]) -> None:
    """Tell the logger how to find this process's rank.

    Args:
        rank: Function that returns it; ranks other than 0 log nothing.
    """
    _first_rank.rank = rank
