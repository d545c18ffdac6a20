"""From what users pass, strings or labels, to checked label tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Labeler = Callable[[Sequence[str]], Tensor]
"""Reports in, (N, 14) int64 label classes out, in the order of `CONDITIONS`."""


def as_labels(
    preds: Tensor | Sequence[str], target: Tensor | Sequence[str], labeler: Labeler | None = None
) -> tuple[Tensor, Tensor]:
    """Label strings and check shapes and values.

    Raises:
        ValueError: If lengths differ, strings come without a labeler, or a label is outside 0..3.
    """
    if len(preds) != len(target):
        raise ValueError(
            f"Expected `preds` and `target` to have the same length, but got {len(preds)} and {len(target)}."
        )
    pair = []
    for name, value in (("preds", preds), ("target", target)):
        if not isinstance(value, Tensor):
            if labeler is None:
                raise ValueError(f"Expected argument `labeler` to be given where `{name}` holds strings.")
            value = labeler(value)
        if value.ndim != 2 or value.shape[1] != 14:
            raise ValueError(f"Expected argument `{name}` to be of shape (N, 14), but got {tuple(value.shape)}.")
        if value.numel() and (int(value.min()) < 0 or int(value.max()) > 3):
            low, high = int(value.min()), int(value.max())
            raise ValueError(f"Expected argument `{name}` to hold label classes 0..3, but got {low}..{high}.")
        pair.append(value.to(torch.int64))
    return pair[0], pair[1]
