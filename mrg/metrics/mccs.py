"""Margin CheXbert cosine similarity (Wang, Ye, Naseem, Kim, MRG-R1, 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mrg.metrics.conditions import NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.labels import Labeler, as_labels


def ccs(preds: Tensor, target: Tensor, uncertain: float = 1.0, empty: str = "match") -> Tensor:
    """Cosine similarity of the signed label vectors over the 13 conditions without No Finding.

    Positive is +1, negative -1, blank 0. Products of integers are exact, so equal rows give exactly 1.

    Args:
        preds: (N, 14) label classes.
        target: (N, 14) label classes.
        uncertain: What an uncertain finding counts as.
        empty: Two empty vectors give 1 (`"match"`), 0 (`"zero"`) or nan (`"nan"`); one empty vector gives 0.

    Returns:
        (N,) float64 in [-1, 1].
    """
    _check(0.0, empty)
    a, b = _signed(preds, uncertain), _signed(target, uncertain)
    dot, norms = (a * b).sum(1), (a * a).sum(1) * (b * b).sum(1)
    cosine = torch.where(norms > 0, dot / norms.clamp(min=1e-300).sqrt(), 0.0)
    both = (a == 0).all(1) & (b == 0).all(1)
    return torch.where(both, {"match": 1.0, "zero": 0.0, "nan": float("nan")}[empty], cosine)


def mccs(
    preds: Tensor,
    target: Tensor,
    margin: float = 0.5,
    uncertain: float = 1.0,
    empty: str = "match",
    reduction: str = "mean",
) -> Tensor:
    """`max((ccs - margin) / (1 - margin), 0)`; the margin of the paper is not public, 0.5 is ours.

    Normal bias: denying p findings while matching k negatives has the cosine (k - p) / (k + p), .71 for one finding in
    six negatives, so that saying that all is normal is paid for a missed finding too. Show it beside CE-F1.

    Args:
        preds: (N, 14) label classes.
        target: (N, 14) label classes.
        margin: In [0, 1).
        uncertain: See `ccs`.
        empty: See `ccs`.
        reduction: `"mean"`, or `"none"` for one value per report.
    """
    _check(margin, empty)
    if reduction not in ("mean", "none"):
        raise ValueError(f"Expected argument `reduction` to be 'mean' or 'none', but got {reduction!r}.")
    score = ((ccs(preds, target, uncertain, empty) - margin) / (1 - margin)).clamp(min=0)
    return score.mean() if reduction == "mean" else score


def _check(margin: float, empty: str) -> None:
    if not 0 <= margin < 1:
        raise ValueError(f"Expected argument `margin` to be in [0, 1), but got {margin}.")
    if empty not in ("match", "zero", "nan"):
        raise ValueError(f"Expected argument `empty` to be 'match', 'zero' or 'nan', but got {empty!r}.")


def _signed(labels: Tensor, uncertain: float) -> Tensor:
    labels = labels[:, :13]
    signed = (labels == POSITIVE).double() - (labels == NEGATIVE).double()
    return signed + uncertain * (labels == UNCERTAIN).double()


class MCCS(Metric):
    """Corpus mean of `mccs`; takes label tensors, or lists of strings where a labeler is given."""

    full_state_update = False
    higher_is_better = True
    labeler: Labeler | None
    total: Tensor
    count: Tensor

    def __init__(
        self,
        margin: float = 0.5,
        uncertain: float = 1.0,
        empty: str = "match",
        labeler: Labeler | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        _check(margin, empty)
        self.margin, self.uncertain, self.empty = margin, uncertain, empty
        # Not a submodule: its weights must not leak into checkpoints, nor train() reach its dropout.
        object.__setattr__(self, "labeler", labeler)
        # Metrics of one collection share their state where it is equal after a batch; other settings are another state.
        settings = torch.tensor([margin, uncertain, float(("match", "zero", "nan").index(empty))], dtype=torch.float64)
        self.add_state("settings", settings, dist_reduce_fx="max")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor | Sequence[str], target: Tensor | Sequence[str]) -> None:
        """Add reports."""
        p, t = as_labels(preds, target, self.labeler)
        scores = mccs(p, t, self.margin, self.uncertain, self.empty, reduction="none").to(self.total.device)
        if not isinstance(preds, Tensor):
            # Nothing written is worth nothing, also where the reference states nothing.
            scores = scores * torch.tensor([bool(text.strip()) for text in preds], device=scores.device)
        self.total += scores.sum()
        self.count += len(scores)

    def compute(self) -> Tensor:
        """The mean, float64."""
        return self.total / self.count
