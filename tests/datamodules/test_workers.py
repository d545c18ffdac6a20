"""Loader workers and signals to the process group."""

import subprocess
import sys

import pytest
from torch.utils.data import DataLoader, Dataset

from mrg.datamodules.workers import init_worker


class Numbers(Dataset):
    """The numbers from 0 to 9."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index


@pytest.mark.skipif(sys.platform != "linux", reason="no sigwaitinfo")
def test_a_worker_ignores_the_signals_of_others_and_ends_for_its_parent():
    loader = DataLoader(Numbers(), batch_size=1, num_workers=1, persistent_workers=True, worker_init_fn=init_worker)
    numbers = iter(loader)
    next(numbers)
    (worker,) = numbers._workers
    for name in ("TERM", "INT", "HUP", "TERM"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert [int(number) for number in numbers] == list(range(1, 10))
    assert [int(number) for number in loader] == list(range(10))
    assert worker.is_alive()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0
