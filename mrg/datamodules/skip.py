"""What is done with a study whose image cannot be read, by `data.init_args.on_error`: nothing, or it is left out.

Choices: images are opened when their batch is made, not all of them first. In training the next study of the split
that can be read takes the place, so that a batch has its size, and all ranks their number of batches. In evaluation
nothing takes it, because a study must not be scored twice; only where a whole batch would be left without studies does
the next one stand in, which is computed, as ranks must do the same, but not scored. What takes a place is a function of
the files alone, so a run that is repeated or resumed is the same. A missing decoder is not an image's fault and always
an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from mrg.datamodules.collate import Skipped
from mrg.datamodules.images.read import DecoderMissingError, ImageReadError
from mrg.datamodules.study import Study
from mrg.errors import UserError

Found = tuple[Study, Any]


@runtime_checkable
class StudyReader(Protocol):
    """A collator in two steps, as `StudyCollator` is one; one that reads no images has no need of them."""

    def read(self, study: Study) -> Any:
        """Read the images of a study, or raise `ImageReadError`."""

    def batch(self, studies: list[Study], images: list[Any]) -> Any:
        """Make a batch of what was read; it has the attributes `skipped` and `counts` of a `Batch`."""


class NamingCollator:
    """Makes batches as another collator does; where an image stops it, says how to go on without the study.

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
            raise ImageReadError(f"{error} To leave out such studies: --data.init_args.on_error skip.") from None


class SkippingCollator:
    """Makes a batch of the studies of some indices, without those whose images cannot be read.

    Args:
        collator: Reads studies and makes batches.
        studies: Of the split.
        split: Its name.
        replace: Put the next studies that can be read in their places, as in training.
    """

    def __init__(self, collator: StudyReader, studies: Sequence[Study], split: str, replace: bool) -> None:
        self.collator, self.studies, self.split, self.replace = collator, studies, split, replace

    def __call__(self, indices: Sequence[int]) -> Any:
        """Read and preprocess.

        Raises:
            ValueError: If no study of the split can be read.
            DecoderMissingError: If a study lacks nothing but an optional package.
        """
        skipped: dict[str, Skipped] = {}
        rows = [self._read(index, skipped) for index in indices]
        found = [row for row in rows if row is not None]
        counts = self.replace or bool(found)
        if len(found) < len(rows) if self.replace else not found:
            others = self._others(indices, skipped)
            # Where the split has no further studies, those of the batch come again.
            again = itertools.cycle(found)
            filled = [row or next(others, None) or next(again, None) for row in (rows if self.replace else rows[:1])]
            found = [row for row in filled if row is not None]
        if not found:
            first = next(iter(skipped.values())).reason
            raise UserError(f"None of the {len(self.studies)} studies of split {self.split!r} can be read: {first}")
        batch = self.collator.batch([study for study, _ in found], [images for _, images in found])
        batch.skipped, batch.counts = tuple(skipped.values()), counts
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
