"""The package's logger: notes and warnings of all commands go through `logging.getLogger("mrg")`.

What a command was asked for (a table, a path, a report) is printed to standard output; everything else is logged. As a
library `mrg` configures nothing. The command line calls `configure`, which logs to standard error.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

log = logging.getLogger("mrg")
log.addHandler(logging.NullHandler())


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, so that redirections are respected."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The current standard error."""
        return sys.stderr


class _FirstRank(logging.Filter):
    """Passes the records of the first rank only."""

    rank: Callable[[], int] = staticmethod(lambda: 0)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this process logs."""
        return self.rank() == 0


class _Format(logging.Formatter):
    """The bare message, with its level for warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.capitalize()}: {text}"


_first_rank = _FirstRank()


def configure(level: int = logging.INFO) -> None:
    """Log to standard error, on the first rank only; a second call only changes the level."""
    log.setLevel(level)
    if not any(isinstance(handler, _StandardError) for handler in log.handlers):
        handler = _StandardError()
        handler.setFormatter(_Format())
        handler.addFilter(_first_rank)
        log.addHandler(handler)


def set_rank(rank: Callable[[], int]) -> None:
    """Set the function that returns this process's rank; ranks other than 0 log nothing."""
    _first_rank.rank = rank
