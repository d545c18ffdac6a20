"""Progress of labelling many reports, as notes of the package's logger."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mrg.log import log
from mrg.metrics.imports import name_of
from mrg.metrics.labels import Labeler


class ReportingLabeler(Labeler):
    """A labeler that logs its progress on many reports.

    Args:
        labeler: Any labeler.
        block: Number of reports that are labelled at a time; up to that many are labelled without a note.
        seconds: Least time between two notes.
    """

    def __init__(self, labeler: Labeler, block: int = 10_000, seconds: float = 5.0) -> None:
        self.labeler, self.block, self.seconds = labeler, block, seconds
        self.name = name_of(labeler)

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
                log.info(f"Labelled {done:,} of {len(distinct):,} distinct reports.")
        row = {text: i for i, text in enumerate(distinct)}
        return torch.cat(parts)[torch.tensor([row[text] for text in texts])]
