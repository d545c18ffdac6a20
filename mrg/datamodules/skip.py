"""What is done with a study whose image cannot be read, by `data.init_args.on_error`: nothing, or it is left out.

Choices: images are opened when their batch is made, not all of them first. In training the next study of the split
that can be read takes the place, so that a batch has its size, and all ranks their number of batches. In evaluation
nothing takes it, because a study must not be scored twice; a batch may be left without studies. What takes a place is
a function of the files alone, so a run that is repeated or resumed is the same. A missing decoder is not an image's
fault and always an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mrg.datamodules.collate import Batch, Skipped, StudyCollator
from mrg.datamodules.image import DecoderMissingError, ImageReadError
from mrg.datamodules.study import Study

Found = tuple[Study, list[np.ndarray]]


class SkippingCollator:
    """Makes a batch of the studies of some indices, without those whose images cannot be read.

    Args:
        collator: Reads studies and makes batches.
        studies: Of the split.
        split: Its name.
        replace: Put the next studies that can be read in their places.
    """

    def __init__(self, collator: StudyCollator, studies: Sequence[Study], split: str, replace: bool) -> None:
        self.collator, self.studies, self.split, self.replace = collator, studies, split, replace

    def __call__(self, indices: Sequence[int]) -> Batch:
        """Read and preprocess.

        Raises:
            ValueError: If no study of the split can be read where one is needed.
            DecoderMissingError: If a study lacks nothing but an optional package.
        """
        skipped: dict[str, Skipped] = {}
        rows = [self._read(index, skipped) for index in indices]
        if self.replace and None in rows:
            others = self._others(indices, skipped)
            # Where the split has no further studies, those of the batch come again.
            spare = itertools.cycle([row for row in rows if row is not None])
            rows = [row or next(others, None) or next(spare, None) for row in rows]
        found = [row for row in rows if row is not None]
        if found:
            batch = self.collator.batch([study for study, _ in found], [images for _, images in found])
        elif self.replace:
            first = next(iter(skipped.values())).reason
            raise ValueError(f"None of the {len(self.studies)} studies of split {self.split!r} can be read: {first}")
        else:
            nothing = torch.zeros(0, 0, dtype=torch.int64)
            batch = Batch(nothing.float(), None, nothing, nothing.bool(), [])
        batch.skipped = tuple(skipped.values())
        return batch

    def _read(self, index: int, skipped: dict[str, Skipped]) -> Found | None:
        study = self.studies[index]
        try:
            return study, self.collator.read(study)
        except DecoderMissingError:
            raise
        except ImageReadError as error:
            skipped[study.id] = Skipped(study.id, self.split, str(error))
            return None

    def _others(self, indices: Sequence[int], skipped: dict[str, Skipped]) -> Iterator[Found]:
        """The studies after the first index that are not in the batch and can be read, around the split once."""
        taken, total = set(indices), len(self.studies)
        for index in ((indices[0] + step) % total for step in range(1, total)):
            if index not in taken:
                row = self._read(index, skipped)
                if row is not None:
                    yield row
