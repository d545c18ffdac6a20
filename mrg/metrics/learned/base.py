"""Scores per report that a network computes, with the interface of `mrg.metrics.labels.Scorer`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrg.errors import RunError
from mrg.metrics.labels import check_pairs
from mrg.metrics.packed import digest_text
from mrg.metrics.shared import SharesWeights

Pair = tuple[str, str]
"""A report and its reference."""


class LearnedScore(SharesWeights):
    """Base class of scorers with weights.

    Attributes:
        name: Name in results, with what changes the numbers.
        higher_is_better: Whether a larger value is a better report.
    """

    name: str
    higher_is_better = True

    def __call__(self, preds: Sequence[str], target: Sequence[str]) -> Tensor:
        """Score N reports against one reference each: (N,) float64 on the CPU.

        Raises:
            UserError: If the lengths differ.
            UserTypeError: If something is not a string; the message gives its index.
            RunError: If a score is not finite.
        """
        check_pairs(preds, target)
        pairs = [(encodable(p), encodable(t)) for p, t in zip(preds, target, strict=True)]
        with self._shared.lock:
            values = self._scores(pairs) if pairs else []
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise RunError(f"{self.name} of report {index} is {value}, not a finite number.")
        return torch.tensor(values, dtype=torch.float64)

    def settings(self) -> dict[str, Any]:
        """Arguments that determine the scores, as JSON values."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        for name in ("device", "batch_tokens", "cache_size"):
            own.pop(name)
        return {name: str(value) if isinstance(value, Path) else value for name, value in own.items()}

    def _scores(self, pairs: list[Pair]) -> list[float]:
        """Scores of pairs; the lock is held."""
        raise NotImplementedError


def encodable(text: str) -> str:
    """The text with a replacement character for half of a surrogate pair, which tokenizers refuse."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def digest_pair(pair: Pair) -> bytes:
    """A hash of 32 bytes."""
    return digest_text(pair[0]) + digest_text(pair[1])
