"""A run that a scheduler ends: how it leaves, and how SLURM is asked to start it again."""

from __future__ import annotations

import signal
import subprocess

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
