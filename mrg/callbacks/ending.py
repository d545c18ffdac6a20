"""What a run that was broken off says: where its last checkpoint is, and how to go on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mrg.errors import one_line


def how_to_go_on(folder: Path) -> str:
    """The command with which to resume the run of a folder."""
    return f"Go on with: python -m mrg fit --config {folder / 'config.yaml'} --resume auto"


def say_below(error: BaseException, line: str, num_processes: int) -> None:
    """Say a line where a user looks for it: below the traceback, if there will be one.

    Args:
        error: What ends the run.
        line: What to say.
        num_processes: Of the run. Where there are several, the first may be killed because another died, before it has
            printed its traceback: the line is said above it, too.
    """
    traced = isinstance(error, Exception) and not isinstance(error, MisconfigurationException)
    below = traced and one_line(error) is None and hasattr(error, "add_note")  # Python 3.11
    if below:
        error.add_note(line)
    if not below or num_processes > 1:
        print(f"\n{line}", flush=True)


class Speaker:
    """Which process says how a run ended: the first one, and where that is gone, the next one, which it had started.

    Args:
        patience: Seconds for which the next one waits to see the first go: what it held is closed before.
    """

    def __init__(self, patience: float = 1.0) -> None:
        self.parent, self.patience = os.getppid(), patience

    def is_here(self, trainer: L.Trainer) -> bool:
        """Whether it is this process."""
        if trainer.is_global_zero or trainer.global_rank > 1:
            return trainer.is_global_zero
        end = time.monotonic() + self.patience
        while os.getppid() == self.parent and time.monotonic() < end:
            time.sleep(0.05)
        return os.getppid() != self.parent
