"""Notice that another process of a run has died, say so, and end: none waits for a process that is gone.

Lightning's first process starts the others and watches them: where one fails, it kills all, itself included, without a
word at the log level of `mrg`. The others do not watch the first one: with NCCL they wait for it until a time limit of
many minutes. Where another program starts the processes (torchrun, SLURM), it reports and ends them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

PATIENCE = 15.0
"""Seconds that a process has for its own traceback and checkpoint before it is ended because another one is gone."""


class OtherProcesses(threading.Thread):
    """Watches the other processes of a run on this machine.

    Args:
        children: Processes that this one has started, in the order of their ranks from 1; none in the processes that
            the first one has started.
        rank: Rank of this process on its machine.
        resume: Returns what to print after the cause: the newest checkpoint, and how to resume.
        parent: Process that has rank 0 on this machine, if it is not this one.
        first: Rank of that process among the processes of all machines.
        patience: Seconds that this process has to end by itself after another one is gone.
        period: Seconds between two looks.
        end: Ends this process with an exit code.
    """

    def __init__(
        self,
        children: Sequence[subprocess.Popen[bytes]],
        rank: int,
        resume: Callable[[], str],
        parent: int = 0,
        first: int = 0,
        patience: float = PATIENCE,
        period: float = 0.5,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__(daemon=True, name="other-processes")
        self.children, self.rank, self.resume = children, rank, resume
        self.patience, self.period, self.end = patience, period, end
        self.parent, self.first = parent, first
        self.done = threading.Event()
        self.failed = self.reported = False
        self.once = threading.Lock()

    def run(self) -> None:
        """Look until `done` is set or a process has died."""
        while not self.done.wait(self.period):
            if self.look():
                if self.rank and not self.done.wait(self.patience):
                    self.end(1)
                return

    def settle(self, seconds: float = 1.0) -> None:
        """Look for a while: an error of this process may be the effect of a death that can be seen a moment later."""
        end = time.monotonic() + seconds
        while not self.look() and time.monotonic() < end:
            time.sleep(0.05)

    def look(self) -> bool:
        """Return whether another process has died, after printing which one and how to resume."""
        cause = self._parent_gone() if self.rank else self._dead_child()
        if cause:
            with self.once:
                if not self.reported and self.rank < 2:
                    print(f"\n{cause} {self.resume()}", file=sys.stderr, flush=True)
                self.reported = True
        return bool(cause)

    def _parent_gone(self) -> str:
        if os.getppid() == self.parent:
            return ""
        return f"Rank {self.first} (process {self.parent}) has ended; the other ranks end too."

    def _dead_child(self) -> str:
        """What has happened to the first process that failed; one killed by a signal cannot say so itself."""
        codes = [(rank, child.pid, child.poll()) for rank, child in enumerate(self.children, self.first + 1)]
        for rank, pid, code in sorted(codes, key=lambda row: row[2] or 0):
            if code and code < 0:
                hint = " (the system does so if memory runs out)" if -code == signal.SIGKILL else ""
                return f"Rank {rank} (process {pid}) was killed by {signal.Signals(-code).name}{hint}."
            if code and not self.failed:
                return f"Rank {rank} (process {pid}) has failed with exit code {code}; its error is above."
        return ""
