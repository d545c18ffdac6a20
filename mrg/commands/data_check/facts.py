"""One pass over the studies: what is kept of each, a few dozen bytes, so that 200,000 reports need not be in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mrg.datamodules.study import Study, View
from mrg.metrics.conditions import NUM_CONDITIONS
from mrg.metrics.labelers.base import Labeler
from mrg.metrics.labels import Labeler as AnyLabeler

_BATCH = 4096
_LETTERS = {"frontal": "F", "lateral": "L"}


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def fold(report: str) -> str:
    """A report with letter case and spacing out of account."""
    return " ".join(report.casefold().split())


def composition(views: Sequence[View]) -> str:
    """The positions of a study's views in order: `F,L`; `?` where the source does not say."""
    return ",".join(_LETTERS.get(view.position, "?") for view in views) or "none"


@dataclasses.dataclass
class SplitFacts:
    """What is kept of a split of N studies, in their order.

    Attributes:
        exact: N digests of the reports as written.
        folded: N digests of the folded reports.
        num_words: N numbers of words.
        patients: N numbers of patients, equal for equal patients in all splits; -1 where the source names none.
        labels: (N, 14) uint8 label classes.
        views: How often each composition of views occurs.
        num_views: How many studies have so many views.
        num_indications: Studies with an indication.
        num_priors: Studies with a prior study.
        empty: Ids of the studies without a word in their report.
        repeated_ids: Ids that an earlier study has already, in whichever split.
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
        """(N,) bool: which reports hold a word."""
        return np.asarray(self.num_words) > 0


class RememberingLabeler(Labeler):
    """Another labeler that reads each text once only, however often it is asked; keeps 14 bytes of a text."""

    def __init__(self, labeler: AnyLabeler) -> None:
        self.labeler = labeler
        self.name = str(getattr(labeler, "name", type(labeler).__name__))
        self._rows: dict[bytes, bytes] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports; see `Labeler`."""
        names = [digest(text) for text in texts]
        new = {name: text for name, text in zip(names, texts, strict=True) if name not in self._rows}
        if new:
            rows = self.labeler(list(new.values())).cpu().to(torch.uint8).numpy()
            self._rows.update(zip(new, map(bytes, rows), strict=True))
        flat = np.frombuffer(b"".join(self._rows[name] for name in names), np.uint8)
        return torch.from_numpy(flat.reshape(-1, NUM_CONDITIONS).astype(np.int64))


def collect(splits: Mapping[str, Sequence[Study]], labeler: AnyLabeler) -> dict[str, SplitFacts]:
    """Go through all studies once, in their order; no image is opened.

    Args:
        splits: Studies by split; a sequence may make each study when it is asked for.
        labeler: Labels the reports.
    """
    patients: dict[str, int] = {}
    ids: set[str] = set()
    return {split: _collect(studies, labeler, patients, ids) for split, studies in splits.items()}


def _collect(studies: Sequence[Study], labeler: AnyLabeler, patients: dict[str, int], ids: set[str]) -> SplitFacts:
    facts = SplitFacts()
    rows = [facts.labels]
    for batch in _batches(studies):
        rows.append(labeler([study.report for study in batch]).cpu().numpy().astype(np.uint8))
        for study in batch:
            _add(facts, study, patients)
            if study.id in ids:
                facts.repeated_ids.append(study.id)
            ids.add(study.id)
    facts.labels = np.concatenate(rows)
    return facts


def _batches(studies: Sequence[Study]) -> Iterator[list[Study]]:
    # Not by index: a sequence that reads studies from a table is far faster in its own order.
    remaining = iter(studies)
    while batch := list(itertools.islice(remaining, _BATCH)):
        yield batch


def _add(facts: SplitFacts, study: Study, patients: dict[str, int]) -> None:
    folded = fold(study.report)
    facts.exact.append(digest(study.report))
    facts.folded.append(digest(folded))
    facts.num_words.append(folded.count(" ") + 1 if folded else 0)
    facts.patients.append(patients.setdefault(study.patient, len(patients)) if study.patient else -1)
    facts.views[composition(study.views)] += 1
    facts.num_views[len(study.views)] += 1
    facts.num_indications += bool(study.indication.strip())
    facts.num_priors += study.prior is not None
    if not folded:
        facts.empty.append(study.id)
