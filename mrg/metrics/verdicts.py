"""What became of each finding: right, uncertain, missed, invented or contradicted, from the two label classes.

A finding is a condition that a report states, surely or as possible, as in the scores with a plus sign (`micro-13+`).
The verdicts part their counts: true positives are `right` and `uncertain`, false negatives are `missed` and what the
reference states and the prediction denies, false positives are `invented` and what the prediction states and the
reference denies. The last two together are `contradicted`.
"""

from __future__ import annotations

import torch
from torch import Tensor

VERDICTS: tuple[str, ...] = ("right", "uncertain", "missed", "invented", "contradicted", "denied", "silent")
"""`denied`: absent in both reports, and both say so. `silent`: no finding, and at most one of the reports denies it."""

ERRORS: tuple[str, ...] = ("missed", "invented", "contradicted")

# First the reference's class, then the prediction's: blank, positive, negative, uncertain.
_TABLE = (
    ("silent", "invented", "silent", "invented"),
    ("missed", "right", "contradicted", "uncertain"),
    ("silent", "contradicted", "denied", "contradicted"),
    ("missed", "uncertain", "contradicted", "right"),
)
_INDICES = torch.tensor([[VERDICTS.index(name) for name in row] for row in _TABLE])


def verdict(preds: int, target: int) -> str:
    """The verdict on one condition of one report.

    - `right`: both state it, with the same certainty.
    - `uncertain`: both state it, but only one of them as certain.
    - `missed`: the reference states it, the prediction does not mention it.
    - `invented`: the prediction states it, the reference does not mention it.
    - `contradicted`: one states it, surely or as possible, and the other denies it.

    Args:
        preds: Label class in the prediction.
        target: Label class in the reference.

    Returns:
        A name of `VERDICTS`.

    Example:
        >>> from mrg.metrics import BLANK, NEGATIVE, POSITIVE, UNCERTAIN
        >>> verdict(BLANK, POSITIVE), verdict(NEGATIVE, UNCERTAIN), verdict(UNCERTAIN, POSITIVE)
        ('missed', 'contradicted', 'uncertain')
    """
    return _TABLE[target][preds]


def verdicts(preds: Tensor, target: Tensor) -> Tensor:
    """`verdict` for whole tables of label classes.

    Args:
        preds: (N, 14) label classes.
        target: (N, 14) label classes.

    Returns:
        (N, 14) int64, places in `VERDICTS`.
    """
    return _INDICES.to(preds.device)[target, preds]
