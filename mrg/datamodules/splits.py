"""Splits of studies that come without any, by patient or all into one; and a part of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from mrg.datamodules.study import Study
from mrg.datamodules.study_table import StudyTable
from mrg.errors import UserError

SPLITS = ("train", "val", "test")


def split_by_patient(
    studies: Sequence[Study], seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> dict[str, list[Study]]:
    """Split at random so that all studies of a patient are in one split; within a split the order stays.

    A patient's place depends on the seed and the patient's id alone, so it stays where studies are added or removed.

    Args:
        studies: Studies; one that names no patient is a patient of its own.
        seed: Another seed gives another split.
        fractions: Shares of the patients in train, val and test, which add up to 1.

    Raises:
        ValueError: If the fractions are negative or do not add up to 1.
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
    """All studies as test, none to train on: how a model trained elsewhere is judged on a whole collection."""
    return {"train": [], "val": [], "test": list(studies)}


def draw(studies: Sequence[Study], num: int) -> Sequence[Study]:
    """So many studies of a split, drawn at random, in the order of the split.

    Its first studies would not do: published lists are sorted, and the first 100 test studies of R2Gen's list of IU
    X-Ray state no finding. The draw depends on the number of studies alone, and a smaller one is part of a larger one.

    Args:
        studies: The split.
        num: How many; 0, or more than there are, for all.
    """
    if not num or num >= len(studies):
        return studies
    order = torch.randperm(len(studies), generator=torch.Generator().manual_seed(0))
    places = sorted(order[:num].tolist())
    return studies.select(places) if isinstance(studies, StudyTable) else [studies[place] for place in places]
