"""A study (images, reference report, patient), a table of studies on disk, and splits of studies."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import torch
from PIL import Image

from mrg.datamodules.images.read import from_pixels, read_image
from mrg.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_FRONTAL = {
    *("frontal", "ap", "pa", "anteroposterior", "posteroanterior", "apaxial", "pachest", "apsupine", "aphorizontal")
}
_LATERAL = {"lateral", "ll", "rl", "lat", "l", "leftlateral", "rightlateral", "rll"}
_BATCH = 1000


@dataclasses.dataclass(frozen=True)
class View:
    """One image of a study.

    Args:
        image: A file, or pixels in memory as (H, W) or (H, W, 3) uint8.
        position: `"frontal"`, `"lateral"`, or `""` if unknown.
    """

    image: Path | np.ndarray
    position: str = ""

    def load(self) -> Image.Image:
        """Read the image as RGB; see `read`."""
        return self.read().convert("RGB")

    def read(self) -> Image.Image:
        """Read the image, as 8-bit grey if it is grey, otherwise as RGB.

        Raises:
            ImageReadError: If the file is missing, cannot be decoded, or is too large (see `MAX_PIXELS`).
        """
        return from_pixels(self.image) if isinstance(self.image, np.ndarray) else read_image(self.image)


@dataclasses.dataclass(frozen=True)
class Study:
    """One examination.

    Args:
        id: Unique identifier within the data set.
        views: Images in the order in which the policy sees them.
        report: Reference report as written; empty only if the study is to be predicted without a reference.
        indication: Reason for the examination; empty if unknown.
        patient: Identifier of the patient; empty if unknown. Splits and leakage checks are by patient.
        prior: Earlier study of the same patient, if the data set has one and it is requested.
    """

    id: str
    views: tuple[View, ...]
    report: str
    indication: str = ""
    patient: str = ""
    prior: Study | None = None


def to_position(word: object) -> str:
    """Map a data set's name for a view position to `"frontal"`, `"lateral"`, or `""` for any other view.

    Letter case and punctuation are ignored: `PA`, `Postero-Anterior` and `POSTERO_ANTERIOR` are frontal.
    """
    letters = re.sub(r"[^a-z]", "", str(word or "").lower())
    return "frontal" if letters in _FRONTAL else "lateral" if letters in _LATERAL else ""


def pair_positions(views: Sequence[View | None], words: Sequence[str]) -> tuple[list[View], bool]:
    """Pair views with their positions by place.

    Args:
        views: Views in the order of the data set, None where it lists no image.
        words: The data set's words for their positions, empty if unknown.

    Returns:
        The views that exist, and whether there are as many words as places. If not, nobody knows which word belongs to
        which view, and all positions are unknown.
    """
    agree = len(words) == len(views)
    positions = map(to_position, words if agree else [""] * len(views))
    pairs = zip(views, positions, strict=True)
    found = [dataclasses.replace(view, position=position) for view, position in pairs if view is not None]
    return found, agree or not found or not any(words)


class RowReader(Protocol):
    """Makes studies from the rows of a table; it is pickled for the loader's workers."""

    @property
    def report_columns(self) -> tuple[str, ...]:
        """Columns that `report` needs."""

    def report(self, row: Mapping[str, Any]) -> str:
        """Reference report of a row."""

    def study(self, row: Mapping[str, Any]) -> Study:
        """Study of a row, without its prior."""


class StudyTable(Sequence[Study]):
    """Studies in a memory-mapped Arrow table, made on access; workers receive file names instead of rows.

    Args:
        table: Rows on disk, see `mrg.datamodules.mimic.index`.
        rows: (N,) int64, row of each study.
        reader: Makes a study from a row.
        priors: (N,) int64, row of each study's prior, or -1; `None` if no study has a prior.
    """

    def __init__(self, table: Dataset, rows: np.ndarray, reader: RowReader, priors: np.ndarray | None = None) -> None:
        self.table, self.rows, self.reader, self.priors = table, rows, reader, priors

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Study: ...

    @overload
    def __getitem__(self, index: slice) -> StudyTable: ...

    def __getitem__(self, index: int | slice) -> Study | StudyTable:
        """One study, or a slice as another table."""
        if isinstance(index, slice):
            return self.select(index)
        return self._study(self.table[int(self.rows[index])], index)

    def select(self, indices: slice | list[int]) -> StudyTable:
        """The studies at some indices as another table; no row is copied."""
        priors = None if self.priors is None else self.priors[indices]
        return StudyTable(self.table, self.rows[indices], self.reader, priors)

    def __iter__(self) -> Iterator[Study]:
        """All studies, read in batches of rows."""
        for index, row in enumerate(self._read(self.table)):
            yield self._study(row, index)

    def reports(self) -> list[str]:
        """All reports, without making the studies."""
        columns = self.table.select_columns(list(self.reader.report_columns))
        return [self.reader.report(row) for row in self._read(columns)]

    def _read(self, table: Dataset) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.rows), _BATCH):
            columns = table[self.rows[start : start + _BATCH].tolist()]
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

    def _study(self, row: Mapping[str, Any], index: int) -> Study:
        study, prior = self.reader.study(row), -1 if self.priors is None else int(self.priors[index])
        return study if prior < 0 else dataclasses.replace(study, prior=self.reader.study(self.table[prior]))


SPLITS = ("train", "val", "test")


def split_by_patient(
    studies: Sequence[Study], seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> dict[str, list[Study]]:
    """Split at random so that all studies of a patient are in one split; within a split the order is kept.

    A patient's split depends only on the seed and the patient's id, so it does not change when studies are added or
    removed.

    Args:
        studies: Studies; one without a patient counts as a separate patient.
        seed: Random seed.
        fractions: Fractions of the patients in train, val and test, which add up to 1.

    Raises:
        UserError: If the fractions are negative or do not add up to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise UserError(f"Expected the fractions of train, val and test to add up to 1, but got {fractions}.")
    splits: dict[str, list[Study]] = {name: [] for name in SPLITS}
    for study in studies:
        digest = hashlib.sha256(f"{seed}/{study.patient or study.id}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        name = "train" if place < fractions[0] else "val" if place < fractions[0] + fractions[1] else "test"
        splits[name].append(study)
    return splits


def all_as_test(studies: Sequence[Study]) -> dict[str, list[Study]]:
    """Put all studies into the test split, to evaluate a model that was trained elsewhere."""
    return {"train": [], "val": [], "test": list(studies)}


def random_subset(studies: Sequence[Study], num: int) -> Sequence[Study]:
    """Sample studies at random without replacement, in the order of the split.

    The first studies would not be representative: published lists are sorted, and the first 100 test studies of R2Gen's
    list of IU X-Ray have no finding. The sample depends only on the number of studies, and a smaller sample is part of
    a larger one.

    Args:
        studies: Studies of a split.
        num: Size of the sample; 0, or a number larger than the split, selects all.
    """
    if not num or num >= len(studies):
        return studies
    order = torch.randperm(len(studies), generator=torch.Generator().manual_seed(0))
    indices = sorted(order[:num].tolist())
    return studies.select(indices) if isinstance(studies, StudyTable) else [studies[index] for index in indices]


def fold(report: str) -> str:
    """Fold letter case and white space of a report, for comparisons."""
    return " ".join(report.casefold().split())


def leakage_free(test: Sequence[Study], train: Sequence[Study]) -> list[Study]:
    """Select the test studies whose report does not occur in train, ignoring letter case and white space.

    A policy that repeats training reports verbatim gets full marks on all others.
    """
    seen = {fold(study.report) for study in train}
    return [study for study in test if fold(study.report) not in seen]
