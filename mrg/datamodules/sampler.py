"""The order of studies in training: a function of seed and epoch, so that it can go on from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import DistributedSampler


class StudySampler(DistributedSampler[int]):
    """Indices of all studies in an order drawn for each epoch, dealt out to the ranks.

    Consecutive studies go to different ranks, so that the ranks' batches together are the batch of a single process.
    Nothing is drawn from a global generator: an order does not depend on what ran before. It is a `DistributedSampler`
    because Lightning leaves those as they are.

    Args:
        studies: What is sampled; only its length is used.
        seed: Of the orders; equal on all ranks.
        num_ranks: Processes that train.
        rank: Which of them this is.
        epoch: The epoch to begin with.
        start: How many studies of its own the rank leaves out in that epoch, because it has seen them.
    """

    def __init__(
        self, studies: Sized, seed: int, num_ranks: int = 1, rank: int = 0, epoch: int = 0, start: int = 0
    ) -> None:
        super().__init__(studies, num_ranks, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.num_studies = len(studies)
        self.epoch, self.start = epoch, start

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, whose studies are all to come; the present one goes on."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order = torch.randperm(self.num_studies, generator=generator).tolist()
        # As many for each rank: the first ones again.
        order *= -(-self.total_size // max(1, len(order)))
        return iter(order[self.rank : self.total_size : self.num_replicas][self.start :])
