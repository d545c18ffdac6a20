"""Statistics of a split, collected in one pass: a few dozen bytes per study, so that large data sets fit in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mrg.datamodules.study import Study, View, fold
from mrg.metrics.conditions import NUM_CONDITIONS
from mrg.metrics.labels import Labeler, run_labeler
from mrg.metrics.packed import digest_text

_BATCH = 4096
_LETTERS = {"frontal": "F", "lateral": "L"}


def digest(content: bytes) -> bytes:
    """A hash of 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def composition(views: Sequence[View]) -> str:
    """Positions of a study's views in order, such as `F,L`; `?` if unknown."""
    return ",".join(_LETTERS.get(view.position, "?") for view in views) or "none"


@dataclasses.dataclass
class SplitStatistics:
    """Statistics of a split of N studies, in their order.

    Attributes:
        exact: N digests of the reports as written.
        folded: N digests of the folded reports.
        num_words: N numbers of words.
        patients: N numbers of patients, the same for the same patient in all splits; -1 if unknown.
        labels: (N, 14) uint8 label classes.
        views: Number of studies per composition of views.
        num_views: Number of studies per number of views.
        num_indications: Number of studies with an indication.
        num_priors: Number of studies with a prior study.
        empty: Ids of the studies with an empty report.
        repeated_ids: Ids of studies whose id an earlier study of any split has.
    """

    exact: list[bytes] = dataclasses.field(default_factory=list)
    folded: list[bytes] = dataclasses.field(default_factory=list)
    num_words: array[int] = dataclasses.field(default_factory=lambda: array("l"))
    patients: array[int] = dataclasses.field(default_factory=lambda: array("l"))
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, NUM_CONDITIONS), np.uint8))
    views: Counter[str] = dataclasses.field(default_factory=Counter)
    num_views: Counter[int] = dataclasses.field(default_factory=Counter)
    num_indications: int = 0
    num_priors: int = 0
    empty: list[str] = dataclasses.field(default_factory=list)
    repeated_ids: list[str] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def is_written(self) -> np.ndarray:
        """(N,) bool: whether a report is not empty."""
        return np.asarray(self.num_words) > 0

    def add(self, study: Study, patients: dict[str, int]) -> None:
        """Add a study, except for its labels; `patients` numbers the patients of all splits."""
        folded = fold(study.report)
        self.exact.append(digest_text(study.report))
        self.folded.append(digest_text(folded))
        self.num_words.append(folded.count(" ") + 1 if folded else 0)
        self.patients.append(patients.setdefault(study.patient, len(patients)) if study.patient else -1)
        self.views[composition(study.views)] += 1
        self.num_views[len(study.views)] += 1
        self.num_indications += bool(study.indication.strip())
        self.num_priors += study.prior is not None
        if not folded:
            self.empty.append(study.id)


def collect_statistics(splits: Mapping[str, Sequence[Study]], labeler: Labeler) -> dict[str, SplitStatistics]:
    """Collect the statistics of all splits in one pass, without opening images.

    Args:
        splits: Studies by split; a sequence may make each study on access.
        labeler: Labels the reports.
    """
    patients: dict[str, int] = {}
    ids: set[str] = set()
    found = {}
    for split, studies in splits.items():
        part = found[split] = SplitStatistics()
        rows = [part.labels]
        for batch in _batches(studies):
            rows.append(run_labeler(labeler, [study.report for study in batch]).cpu().numpy().astype(np.uint8))
            for study in batch:
                part.add(study, patients)
                if study.id in ids:
                    part.repeated_ids.append(study.id)
                ids.add(study.id)
        part.labels = np.concatenate(rows)
    return found


def _batches(studies: Sequence[Study]) -> Iterator[list[Study]]:
    # Not by index: a sequence that reads studies from a table is far faster in order.
    remaining = iter(studies)
    while batch := list(itertools.islice(remaining, _BATCH)):
        yield batch
