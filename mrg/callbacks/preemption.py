"""A run that a scheduler ends: what announces it, how it leaves, and how SLURM is asked to start it again."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment


class Preempted(SystemExit):
    """A run that was asked to end has saved its state and ends; exit code 0.

    Args:
        reason: What ended it, and after which round.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(0)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class EndSignal:
    """The signal that has asked this process to end; `number` is 0 as long as none has."""

    def __init__(self) -> None:
        self.number = 0

    def catch(self, trainer: L.Trainer) -> None:
        """Catch the signals that announce an end, in the place of Lightning, which would not finish the round.

        Under SLURM with requeueing, Lightning would also save a checkpoint of its own in the middle of a round.
        """
        connector = trainer._signal_connector
        self.number = int(signal.SIGTERM) if connector.received_sigterm else 0
        connector.received_sigterm = False
        signals = {int(signal.SIGTERM)}
        if (number := requeue_signal(trainer)) is not None:
            signals.add(number)
        for number in signals:
            # Lightning puts the former handlers back when training has ended.
            connector._register_signal(signal.Signals(number), self._take)

    def _take(self, number: int, frame: Any) -> None:
        self.number = number

    @property
    def name(self) -> str:
        """Of the signal; where another rank has it, the usual one."""
        return signal.Signals(self.number or signal.SIGTERM).name

    def asks_for_requeue(self, trainer: L.Trainer) -> bool:
        """Whether SLURM expects the job to be queued again."""
        return bool(self.number) and self.number == requeue_signal(trainer)


def requeue_signal(trainer: L.Trainer) -> int | None:
    """The signal on which SLURM expects the job to end and to be queued again."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return int(environment.requeue_signal or signal.SIGUSR1)
    return None


def requeue() -> None:
    """Ask SLURM to queue this job again, and say what came of it."""
    job = str(SLURMEnvironment.job_id())
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    print(f"SLURM job {job} {'could not be requeued: ' + problem if problem else 'is queued again'}.", flush=True)
