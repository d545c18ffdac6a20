"""Evaluation on several ranks: every study counts once, and all ranks make equally many batches.

PyTorch's `DistributedSampler` repeats studies where they cannot be shared out evenly, and the repeats would be scored
again; Lightning's sampler for predictions gives ranks unequal numbers of batches, and ranks that share layers would
wait for each other. Here a rank that has fewer batches computes one more, which is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, DistributedSampler

Part = tuple[list[int], bool]


class RankBatches(DistributedSampler[Part]):
    """Batches of one rank in the order of the split: indices, and whether they count.

    It is a `DistributedSampler` because Lightning leaves those as they are.

    Args:
        num_studies: Of the split, at least 1.
        batch_size: Studies of a batch.
        num_ranks: Processes that evaluate.
        rank: Which of them this is.
    """

    def __init__(self, num_studies: int, batch_size: int, num_ranks: int, rank: int) -> None:
        super().__init__(range(num_studies), num_ranks, rank, shuffle=False)  # type: ignore[arg-type]
        own = list(range(rank, num_studies, num_ranks))
        self.parts: list[Part] = [(own[i : i + batch_size], True) for i in range(0, len(own), batch_size)]
        most = -(-num_studies // num_ranks)  # of the first rank
        while len(self.parts) < -(-most // batch_size):
            self.parts.append(([0], False))

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


class Parts(Dataset[Part]):
    """Hands the sampler's parts on to the collator, which runs in the loader's workers."""

    def __getitem__(self, part: Part) -> Part:
        return part


class PartCollator:
    """Makes a batch of a part.

    Args:
        collate: Makes a batch of what `dataset` holds at some indices.
        dataset: Studies, or what else the collator takes.
    """

    def __init__(self, collate: Callable[[Any], Any], dataset: Sequence[Any]) -> None:
        self.collate, self.dataset = collate, dataset

    def __call__(self, part: Part) -> Any:
        """See `RankBatches`; what does not count says so."""
        indices, counts = part
        batch = self.collate([self.dataset[index] for index in indices])
        batch.counts = batch.counts and counts
        return batch
