"""A command of which one process is killed: `python -m tests.callbacks.killed_rank RANK BATCHES COMMAND …`.

The process of that rank is killed before it writes the reports of another batch; rank -1 is none.
"""

import os
import signal
import sys

import torch

from mrg.cli import main
from mrg.modules.sft import SFTModule


def kill_at(rank, batches):
    write, done = SFTModule.write, []

    def counted(self, batch):
        if len(done) == batches and self.global_rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(batch)
        return write(self, batch)

    SFTModule.write = counted


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_at(int(sys.argv[1]), int(sys.argv[2]))
    main(sys.argv[3:])
