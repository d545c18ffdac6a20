"""How a run ends before its last step: signals, SLURM's requeue, and the line that tells how to resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mrg.callbacks.training_loop import cluster_environment, take_sigterm
from mrg.errors import one_line
from mrg.log import log
from mrg.run.checkpoints import CheckpointFolder
from mrg.run.other_processes import OtherProcesses

ENDING = tuple(int(getattr(signal, name)) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask any run to end: of a scheduler or `kill`, and of a terminal that closes."""


class Preempted(SystemExit):
    """Ends a run that was asked to stop and has saved its state; the exit code is 0.

    Args:
        reason: Signal and round, for whoever logs the exception.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(0)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class EndSignal:
    """The signal that has asked this process to end; `number` is 0 until one arrives."""

    def __init__(self) -> None:
        self.number = 0

    def catch(self, trainer: L.Trainer) -> None:
        """Handle the signals that announce an end. Lightning's handlers would not finish the round.

        Under SLURM with requeueing, Lightning would also save a checkpoint of its own in the middle of a round.
        """
        self.number = int(signal.SIGTERM) if take_sigterm(trainer) else 0
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers
        for number in {*ENDING, requeue_signal(trainer) or int(signal.SIGTERM)}:
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
                # Lightning restores the previous handlers after training.
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        self.number = number

    @property
    def name(self) -> str:
        """Name of the signal; if another rank received it, the usual one."""
        return signal.Signals(self.number or signal.SIGTERM).name

    def asks_for_requeue(self, trainer: L.Trainer) -> bool:
        """Return whether SLURM expects the job to be requeued."""
        return bool(self.number) and self.number == requeue_signal(trainer)


def requeue_signal(trainer: L.Trainer) -> int | None:
    """Return the signal on which SLURM expects the job to end and to be requeued, if any."""
    environment = cluster_environment(trainer)
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return int(environment.requeue_signal or signal.SIGUSR1)
    return None


def requeue() -> None:
    """Ask SLURM to requeue this job, and log the outcome."""
    job = str(SLURMEnvironment.job_id())
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    if problem:
        log.warning(f"SLURM job {job} could not be requeued: {problem}.")
    else:
        log.info(f"SLURM job {job} is requeued.")


def resume_command(folder: Path) -> str:
    """Return a sentence with the command that resumes the run of a folder."""
    return f"Resume with: python -m mrg fit --config {folder / 'config.yaml'} --resume auto"


def print_last(error: BaseException, line: str, num_processes: int) -> None:
    """Print a line to standard error such that it is the last one: below the traceback, if there is one.

    Args:
        error: Error that ends the run.
        line: Line to print.
        num_processes: Number of processes of the run. If there are several, the first may be killed because another one
            died, before it has printed its traceback, so the line is printed above it as well.
    """
    traced = isinstance(error, Exception) and not isinstance(error, MisconfigurationException)
    below = traced and one_line(error) is None and hasattr(error, "add_note")  # Python 3.11
    if below:
        error.add_note(line)
    if not below or num_processes > 1:
        print(f"\n{line}", file=sys.stderr, flush=True)  # not logged: the first rank may be gone


class Reporter:
    """Decides which process reports the end of a run: the first, or if it is gone, the second, which it had started.

    Args:
        patience: Seconds for which the second waits for the first to disappear.
    """

    def __init__(self, patience: float = 1.0) -> None:
        self.parent, self.patience = os.getppid(), patience

    def is_here(self, trainer: L.Trainer) -> bool:
        """Return whether it is this process."""
        if trainer.is_global_zero or trainer.global_rank > 1:
            return trainer.is_global_zero
        end = time.monotonic() + self.patience
        while os.getppid() == self.parent and time.monotonic() < end:
            time.sleep(0.05)
        return os.getppid() != self.parent


class EndTogether(L.Callback):
    """Reports the death of another process of the run, and does not outlive it; see `mrg.run.other_processes`.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others: OtherProcesses | None = None
        self.parent = os.getppid()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch the processes that Lightning has started, or the one that has started this one."""
        children = getattr(trainer.strategy.launcher, "procs", [])
        # Otherwise the parent is not rank 0, but torchrun or SLURM, which end all processes themselves.
        by_lightning = isinstance(cluster_environment(trainer), LightningEnvironment)
        parent = self.parent if trainer.local_rank and by_lightning else 0
        if self.others is None and (children or parent):
            first = trainer.global_rank - trainer.local_rank
            resume = partial(self._resume, stage)
            self.others = OtherProcesses(children, trainer.local_rank, resume, parent, first)
            self.others.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop watching at the regular end."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say which process has died if that is why this one fails."""
        if isinstance(exception, SystemExit | KeyboardInterrupt):
            self._stop()
        elif self.others is not None:
            self.others.failed = isinstance(exception, Exception) and one_line(exception) is not None
            self.others.settle()

    def _stop(self) -> None:
        if self.others is not None:
            self.others.done.set()
            self.others = None

    def _resume(self, stage: str) -> str:
        """A sentence on how to resume a command of which a process has died."""
        if stage in ("test", "predict"):
            return "Repeat the command with --resume auto: finished reports are kept."
        files = CheckpointFolder(self.folder / "checkpoints")
        last = next((files.path / name for name in files.names()), None) if stage == "fit" else None
        return (
            "Repeat the command." if last is None else f"The last checkpoint is {last}. {resume_command(self.folder)}"
        )
