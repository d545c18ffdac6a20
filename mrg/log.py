"""The package's logger: notes and warnings of all commands go through `logging.getLogger("mrg")`.

What a command was asked for (a table, a path, a report) is printed to standard output; everything else is logged. As a
library `mrg` configures nothing. The command line calls `configure`, which logs to standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

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


class TolerantStream:
    """Standard output or error for a command that must not fail because of its messages.

    If the reader has left, the disk is full or the terminal is gone, what remains to be written is dropped. Characters
    that the encoding lacks are escaped.

    Args:
        stream: The stream to write to.
        name: Its name in the warning; without one there is no warning.
    """

    def __init__(self, stream: TextIO, name: str = "") -> None:
        self.stream, self.name = stream, name
        self.problem: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            self._attempt(self.stream.write, text)
        except UnicodeEncodeError as error:
            self._attempt(self.stream.write, text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what is left."""
        self._attempt(self.stream.flush)

    def _attempt(self, action: Callable[..., object], *args: str) -> None:
        if self.problem is not None:
            return
        try:
            action(*args)
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError) as error:  # a closed stream raises ValueError
            self.problem = error
            with contextlib.suppress(OSError, ValueError):
                # What is still in its buffer would fail again at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if self.name and not isinstance(error, BrokenPipeError):
                log.warning(f"{self.name} cannot be written ({_reason(error)}): the command continues without it.")


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextlib.contextmanager
def tolerant_streams() -> Iterator[TolerantStream | None]:
    """Let messages fail without an error inside the context; yields the standard output, None if there is none."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file would get the number, and with it what a library prints
            os.open(os.devnull, os.O_RDWR)
    with contextlib.ExitStack() as stack:
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(cast(TextIO, TolerantStream(sys.stderr))))
        output = None
        if sys.stdout is not None:
            output = TolerantStream(sys.stdout, "Standard output")
            stack.enter_context(contextlib.redirect_stdout(cast(TextIO, output)))
        try:
            yield output
        finally:
            if output is not None:
                output.flush()
