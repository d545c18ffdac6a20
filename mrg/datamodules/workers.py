"""Processes that load batches: a signal to the whole process group leaves them alone, so that the run can save."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection

from lightning.fabric.utilities.seed import pl_worker_init_function


def init_worker(worker_id: int) -> None:
    """Seed a loader's worker as Lightning does, and leave signals that end a run to the process that trains.

    Schedulers, `kill -TERM -PGID`, Ctrl-C and a terminal that closes send the signal to every process of the group. A
    worker that ended at once would fail the round that the main process finishes and saves. The main process itself
    can still end a worker by SIGTERM, and a worker ends when the main process is gone.

    Args:
        worker_id: Number of the worker.
    """
    if int(os.environ.get("PL_SEED_WORKERS", 0)):
        pl_worker_init_function(worker_id)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        # Only a thread that waits for a signal learns who has sent it; threads started later block them as well.
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        threading.Thread(target=_wait, args=(numbers, os.getppid()), daemon=True).start()


def _wait(numbers: Collection[int], parent: int) -> None:
    """End this process when its parent sends SIGTERM; ignore signals of others."""
    while True:
        received = signal.sigwaitinfo(numbers)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)
