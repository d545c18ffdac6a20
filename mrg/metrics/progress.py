"""Progress of labelling many reports, as lines on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mrg.metrics.labels import Labeler


class ReportingLabeler:
    """A labeler that says how far it is while it labels many reports.

    Args:
        labeler: The labeler that does the work.
        block: Number of reports labelled at a time; as many or fewer are labelled without a word.
        seconds: Least time between two lines.
    """

    def __init__(self, labeler: Labeler, block: int = 10_000, seconds: float = 5.0) -> None:
        self.labeler, self.block, self.seconds = labeler, block, seconds
        self.name = getattr(labeler, "name", type(labeler).__name__)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports; see `mrg.metrics.labelers.base.Labeler`."""
        if len(texts) <= self.block:
            return self.labeler(texts)
        distinct = list(dict.fromkeys(texts))
        parts, told = [], time.monotonic()
        for start in range(0, len(distinct), self.block):
            parts.append(self.labeler(distinct[start : start + self.block]))
            done = start + len(parts[-1])
            if time.monotonic() - told >= self.seconds or done == len(distinct):
                told = time.monotonic()
                print(f"Labelled {done:,} of {len(distinct):,} distinct reports.", file=sys.stderr, flush=True)
        row = {text: i for i, text in enumerate(distinct)}
        return torch.cat(parts)[torch.tensor([row[text] for text in texts])]
