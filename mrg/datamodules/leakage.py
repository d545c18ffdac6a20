"""Test reports that stand in the training split word for word."""

from __future__ import annotations

from collections.abc import Sequence

from mrg.datamodules.study import Study


def fold(report: str) -> str:
    """A report without letter case and without differences in white space."""
    return " ".join(report.casefold().split())


def leakage_free(test: Sequence[Study], train: Sequence[Study]) -> list[Study]:
    """Keep the test studies whose report does not occur in train, letter case and white space aside.

    Repeating a training report word for word scores full marks on all others.
    """
    seen = {fold(study.report) for study in train}
    return [study for study in test if fold(study.report) not in seen]
