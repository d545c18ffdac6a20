"""Texts -> rewards: the clinical similarity of the report, and the format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrg.metrics.format import format_score, parse_completion
from mrg.metrics.mccs import mccs
from mrg.metrics.reward import RewardError


class Rewards(NamedTuple):
    """Rewards of N completions.

    Args:
        total: (N,) float64.
        parts: Name -> (N,), unweighted.
        labels: (N, 14) label classes of the completions' reports, and of the references.
    """

    total: Tensor
    parts: dict[str, Tensor]
    labels: tuple[Tensor, Tensor]


class Reward:
    """`mccs_weight * MCCS + format_weight * format`, as in MRG-R1.

    Args:
        labeler: Labels reports, see `mrg.metrics.labels.Labeler`.
        mccs_weight: Weight of MCCS; .75 in the paper.
        format_weight: Weight of the format score; .25 in the paper.
        margin: Margin of MCCS.
        think: `"required"` or `"absent"`: the format that is paid.
    """

    def __init__(
        self,
        labeler: Any,
        mccs_weight: float = 0.75,
        format_weight: float = 0.25,
        margin: float = 0.5,
        think: str = "required",
    ) -> None:
        self.labeler = labeler
        self.mccs_weight, self.format_weight = mccs_weight, format_weight
        self.margin, self.think = margin, think

    def __call__(self, texts: Sequence[str], target: Sequence[str], study_id: Sequence[str]) -> Rewards:
        """Reward N completions.

        A completion without a report section is paid nothing for its findings, before any labelling.

        Returns:
            The parts are `mccs` and `format`.

        Raises:
            RewardError: If the labeler fails or a reward is not finite.
        """
        reports = [parse_completion(text, self.think).report for text in texts]
        try:
            # One call labels both sides; the labeler caches by text, and a group shares its reference.
            labels = self.labeler([*reports, *target])
        except Exception as error:
            name = self._culprit(reports, target, study_id)
            raise RewardError(f"The labeler failed on study {name}: {error}") from error
        preds, references = labels[: len(texts)], labels[len(texts) :]
        clinical = mccs(preds, references, self.margin, reduction="none")
        clinical = torch.where(torch.tensor([bool(report) for report in reports]), clinical, 0.0)
        parts = {"mccs": clinical, "format": format_score(texts, self.think)}
        rewards = self.mccs_weight * clinical + self.format_weight * parts["format"]
        if not bool(rewards.isfinite().all()):
            worst = int((~rewards.isfinite()).nonzero()[0])
            raise RewardError(f"The reward of study {study_id[worst]} is {float(rewards[worst])}, not a finite number.")
        return Rewards(rewards, parts, (preds, references))

    def _culprit(self, reports: Sequence[str], target: Sequence[str], study_id: Sequence[str]) -> str:
        """The first study whose texts the labeler cannot read alone; all of them where only the batch fails."""
        for name, *texts in zip(study_id, reports, target, strict=True):
            try:
                self.labeler(texts)
            except Exception:  # whatever it was, the caller raises it with this name
                return name
        return f"{study_id[0]} to {study_id[-1]} (each alone can be labelled)"
