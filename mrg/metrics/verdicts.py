"""Verdict on each finding from two label classes: correct, uncertain, missed, hallucinated or contradicted.

A finding is a condition that a report states, as certain or as possible, as in the scores with a plus sign
(`micro-13+`). The verdicts partition their counts: true positives are `correct` and `uncertain`; false negatives are
`missed` and the contradictions that the reference states; false positives are `hallucinated` and the contradictions
that the prediction states.
"""

from __future__ import annotations

import torch
from torch import Tensor

VERDICTS: tuple[str, ...] = ("correct", "uncertain", "missed", "hallucinated", "contradicted", "denied", "silent")
"""`denied`: negative in both reports. `silent`: no finding, and negative in at most one of them."""

ERRORS: tuple[str, ...] = ("missed", "hallucinated", "contradicted")

# By class in the reference, then in the prediction: blank, positive, negative, uncertain.
_TABLE = (
    ("silent", "hallucinated", "silent", "hallucinated"),
    ("missed", "correct", "contradicted", "uncertain"),
    ("silent", "contradicted", "denied", "contradicted"),
    ("missed", "uncertain", "contradicted", "correct"),
)
_INDICES = torch.tensor([[VERDICTS.index(name) for name in row] for row in _TABLE])


def verdict(preds: int, target: int) -> str:
    """Verdict on one condition of one report.

    - `correct`: both state it with the same certainty.
    - `uncertain`: both state it, only one of them as certain.
    - `missed`: the reference states it, the prediction does not mention it.
    - `hallucinated`: the prediction states it, the reference does not mention it.
    - `contradicted`: one states it, as certain or as possible, and the other denies it.

    Args:
        preds: Label class in the prediction.
        target: Label class in the reference.

    Returns:
        A name from `VERDICTS`.

    Example:
        >>> from mrg.metrics import BLANK, NEGATIVE, POSITIVE, UNCERTAIN
        >>> verdict(BLANK, POSITIVE), verdict(NEGATIVE, UNCERTAIN), verdict(UNCERTAIN, POSITIVE)
        ('missed', 'contradicted', 'uncertain')
    """
    return _TABLE[target][preds]


def verdicts(preds: Tensor, target: Tensor) -> Tensor:
    """Verdicts on all conditions of N reports, see `verdict`.

    Args:
        preds: (N, 14) label classes.
        target: (N, 14) label classes.

    Returns:
        (N, 14) int64, indices into `VERDICTS`.
    """
    return _INDICES.to(preds.device)[target, preds]
