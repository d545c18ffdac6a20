"""What a loader does with a split: the order in training, batches per rank in evaluation, unreadable images.

Choices: the training order depends only on seed and epoch, so that a run can be resumed anywhere. In evaluation every
study counts once and all ranks compute the same number of batches: PyTorch's `DistributedSampler` would score repeated
studies twice, and Lightning's prediction sampler gives ranks unequal numbers of batches, at which sharded layers hang.

With `on_error: skip`, images are opened when their batch is made. In training the next readable study replaces one that
cannot be read, so that batches keep their size and all ranks their number of batches. In evaluation nothing replaces
it, because no study may be scored twice; only a batch without any readable study is computed with another one, which
is not scored. Replacements depend only on the files, so runs can be repeated and resumed. A missing decoder is always
an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mrg.datamodules.balance import draw
from mrg.datamodules.collate import Skipped
from mrg.datamodules.errors import DecoderMissingError, ImageReadError
from mrg.datamodules.study import Study
from mrg.errors import UserError

RankBatch = tuple[list[int], bool]
"""Indices of a batch, and whether it counts."""


class StudyDataset(Dataset[Study]):
    """A sequence of studies as a dataset."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self.studies = studies

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Study:
        return self.studies[index]


class StudySampler(DistributedSampler[int]):
    """Indices of all studies in a random order per epoch, divided among the ranks.

    Consecutive studies go to different ranks, so that the ranks' batches together are the batch of a single process.
    No global random generator is used. It subclasses `DistributedSampler` because Lightning does not replace those.

    Args:
        studies: Studies; only their number is used.
        seed: Random seed, the same on all ranks.
        num_ranks: Number of training processes.
        rank: Rank of this process.
        epoch: First epoch.
        start: Number of this rank's studies to leave out of the first epoch, because they were seen before resuming.
        weights: (N,) how often each study is drawn relative to others, see `mrg.datamodules.balance`; by default, each
            once.
        reweigh: Function from the index of an epoch to its weights, called before each epoch.
        epoch_studies: Number of this rank's studies in an epoch; by default, the epoch has all studies.
    """

    def __init__(
        self,
        studies: Sized,
        seed: int,
        num_ranks: int = 1,
        rank: int = 0,
        epoch: int = 0,
        start: int = 0,
        weights: Tensor | None = None,
        reweigh: Callable[[int], Tensor] | None = None,
        epoch_studies: int = 0,
    ) -> None:
        super().__init__(studies, num_ranks, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.num_studies = len(studies)
        self.epoch, self.start, self.reweigh = epoch, start, reweigh
        self.weights = weights if reweigh is None else reweigh(epoch)
        if epoch_studies:
            self.num_samples, self.total_size = epoch_studies, epoch_studies * num_ranks
            self.num_studies = self.total_size

    def set_epoch(self, epoch: int) -> None:
        """Select an epoch; another one than the current starts from its first study. All ranks call this."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0
            if self.reweigh is not None:
                self.weights = self.reweigh(epoch)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        if self.weights is None:
            order = torch.randperm(self.num_studies, generator=generator).tolist()
        else:
            order = draw(self.weights, generator, self.num_studies)
        # The first studies are repeated until all ranks have the same number.
        order *= -(-self.total_size // max(1, len(order)))
        return iter(order[self.rank : self.total_size : self.num_replicas][self.start :])


class RankBatches(DistributedSampler[RankBatch]):
    """Evaluation batches of one rank in the order of the split; a rank with fewer batches gets some that do not count.

    It subclasses `DistributedSampler` because Lightning does not replace those.

    Args:
        num_studies: Number of studies in the split, at least 1.
        batch_size: Studies per batch.
        num_ranks: Number of evaluating processes.
        rank: Rank of this process.
        finished: Indices to leave out, because a run that is resumed has finished them. The other batches stay as they
            are, so that their results do.
    """

    def __init__(
        self, num_studies: int, batch_size: int, num_ranks: int, rank: int, finished: Container[int] = ()
    ) -> None:
        super().__init__(range(num_studies), num_ranks, rank, shuffle=False)  # type: ignore[arg-type]
        of_ranks = []
        for start in range(num_ranks):
            own = list(range(start, num_studies, num_ranks))
            batches = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
            left = [[index for index in batch if index not in finished] for batch in batches]
            of_ranks.append([(batch, True) for batch in left if batch])
        self.batches: list[RankBatch] = of_ranks[rank]
        # At least one: Lightning calls no hooks of a loop without batches.
        while len(self.batches) < max(1, *map(len, of_ranks)):
            self.batches.append(([0], False))

    def __iter__(self) -> Iterator[RankBatch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class BatchDataset(Dataset[Any]):
    """Whole batches as a dataset, indexed by the batches of `RankBatches`; a batch that does not count is marked.

    Args:
        collate: Makes a batch of items of `dataset`.
        dataset: Studies, or whatever the collator takes.
    """

    def __init__(self, collate: Callable[[Any], Any], dataset: Sequence[Any]) -> None:
        self.collate, self.dataset = collate, dataset

    def __getitem__(self, index: RankBatch) -> Any:
        indices, counts = index
        batch = self.collate([self.dataset[index] for index in indices])
        batch.counts = batch.counts and counts
        return batch


class AheadLoader(DataLoader[Any]):
    """A loader whose batches hold the next one of the epoch, in `ahead`."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return _with_next(super().__iter__())


def _with_next(batches: Iterator[Any]) -> Iterator[Any]:
    batch = next(batches, None)
    while batch is not None:
        batch.ahead = next(batches, None)
        yield batch
        batch = batch.ahead


@runtime_checkable
class StudyReader(Protocol):
    """A collator in two steps, such as `StudyCollator`; a collator that reads no images does not need them."""

    def read(self, study: Study) -> Any:
        """Read the images of a study, or raise `ImageReadError`."""

    def batch(self, studies: list[Study], images: list[Any]) -> Any:
        """Make a batch of what was read; it has the attributes `skipped` and `counts` of a `Batch`."""


class RaisingCollator:
    """Calls another collator, and adds to its `ImageReadError` how to skip the study.

    Args:
        collator: Makes batches of studies.
    """

    def __init__(self, collator: Callable[[list[Study]], Any]) -> None:
        self.collator = collator

    def __call__(self, studies: list[Study]) -> Any:
        """Make a batch.

        Raises:
            ImageReadError: If an image cannot be read; names the setting.
        """
        try:
            return self.collator(studies)
        except DecoderMissingError:
            raise
        except ImageReadError as error:
            raise ImageReadError(f"{error} To skip such studies, set --data.init_args.on_error skip.") from None


class SkippingCollator:
    """Makes a batch of the studies at some indices, without those whose images cannot be read.

    Args:
        collator: Reads studies and makes batches.
        studies: Studies of the split.
        split: Name of the split.
        replace: Replace skipped studies by the next readable ones, as in training.
    """

    def __init__(self, collator: StudyReader, studies: Sequence[Study], split: str, replace: bool) -> None:
        self.collator, self.studies, self.split, self.replace = collator, studies, split, replace

    def __call__(self, indices: Sequence[int]) -> Any:
        """Read and preprocess.

        Raises:
            UserError: If no study of the split can be read.
            DecoderMissingError: If an optional package is missing.
        """
        skipped: dict[str, Skipped] = {}
        rows = [self._read(index, skipped) for index in indices]
        found = [row for row in rows if row is not None]
        counts = self.replace or bool(found)
        if len(found) < len(rows) if self.replace else not found:
            others = self._others(indices, skipped)
            # If the split has no further studies, those of the batch are repeated.
            again = itertools.cycle(found)
            filled = [row or next(others, None) or next(again, None) for row in (rows if self.replace else rows[:1])]
            found = [row for row in filled if row is not None]
        if not found:
            first = next(iter(skipped.values())).reason
            raise UserError(f"No study of split {self.split!r} can be read: {first}")
        batch = self.collator.batch([study for study, _ in found], [images for _, images in found])
        batch.skipped, batch.counts = tuple(skipped.values()), counts
        return batch

    def _read(self, index: int, skipped: dict[str, Skipped]) -> tuple[Study, Any] | None:
        study = self.studies[index]
        try:
            return study, self.collator.read(study)
        except DecoderMissingError:
            raise
        except ImageReadError as error:
            skipped[study.id] = Skipped(study.id, self.split, str(error))
            return None

    def _others(self, indices: Sequence[int], skipped: dict[str, Skipped]) -> Iterator[tuple[Study, Any]]:
        """Readable studies that are not in the batch, from its first index once around the split."""
        taken, total = set(indices), len(self.studies)
        for index in ((indices[0] + step) % total for step in range(1, total)):
            if index not in taken:
                row = self._read(index, skipped)
                if row is not None:
                    yield row
