"""Splits: by patient or all into test, random subsets, and test studies whose report does not occur in train."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from mrg.datamodules.study import Study, StudyTable
from mrg.errors import UserError

SPLITS = ("train", "val", "test")


def split_by_patient(
    studies: Sequence[Study], seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> dict[str, list[Study]]:
    """Split at random so that all studies of a patient are in one split; within a split the order is kept.

    A patient's split depends only on the seed and the patient's id, so it does not change when studies are added or
    removed.

    Args:
        studies: Studies; one without a patient counts as a patient of its own.
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
