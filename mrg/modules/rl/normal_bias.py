"""Rewards without the normal bias of MCCS: for rare conditions, for findings alone, and above a constant report.

A score of one report by which silence on a normal study is paid has its threshold at 1/2: a finding of probability p is
worth stating only where p > 1/2, which a rare finding seldom reaches. In the formulas, S and T are the findings that
the report and its reference state, m is the MCCS of the report, c that of the best constant report (the training report
with the highest mean MCCS) on the same study, and

    odds = threshold / (1 - threshold)

| part | score of a report | a finding is worth stating where |
|---|---|---|
| `rare_mccs` | MCCS with the cosine sum(w a b) / sqrt(sum(w a a) sum(w b b)), w the weight of a condition | p > 1/2 |
| `positives` | number(S and T) / sqrt(number(S) number(T)); odds if both are empty, 0 if one is | p > threshold |
| `above_constant` | odds * min(m, c) + max(m - c, 0) | p > threshold |

The weights of `rare_mccs` change what is at stake, not the threshold: the cosine is symmetric, so that a hallucinated
finding costs as much as a missed one. In `positives`, denials earn nothing. `above_constant` is m - c with what lies
below the constant multiplied by `odds`, plus odds * c, which makes a missing report worth 0. With `odds` 1 it is MCCS:
a number that is subtracted from all completions of a study, such as the reward of a constant report, changes neither
the advantages nor the deviation of a group, and does not mend anything by itself. The threshold is exact where the best
alternative to stating the finding is the constant report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mrg.errors import UserError, nearest
from mrg.metrics.conditions import CONDITIONS, NEGATIVE, THIRTEEN, stated
from mrg.metrics.constants import best_report, evenly_spaced
from mrg.metrics.labels import Labeler, label_together
from mrg.metrics.mccs import mccs

MOST = 10.0
"""Largest weight of `"inverse_prevalence"`."""
NAMES = ("rare_mccs", "positives", "above_constant")


@dataclasses.dataclass(frozen=True)
class NormalBias:
    """Settings of the parts of the reward without normal bias.

    Args:
        threshold: Probability above which `positives` and `above_constant` make a finding worth stating, in (0, 0.5].
        condition_weights: Weights of `rare_mccs`: factors by condition, or `"inverse_prevalence"`, the prevalence of
            the most frequent finding of the training split divided by that of the condition, at most 10.

    Raises:
        UserError: If a setting is out of range.
    """

    threshold: float = 0.15
    condition_weights: dict[str, float] | Literal["inverse_prevalence"] = "inverse_prevalence"

    def __post_init__(self) -> None:
        where = "model.init_args.reward.normal_bias"
        if not 0 < self.threshold <= 0.5:
            raise UserError(f"Expected {where}.threshold to be above 0 and at most 0.5, but got {self.threshold}.")
        if isinstance(self.condition_weights, str):
            if self.condition_weights != "inverse_prevalence":
                raise UserError(
                    f"Expected {where}.condition_weights to be 'inverse_prevalence' or factors by condition, but got "
                    f"{self.condition_weights!r}."
                )
            return
        for name, factor in self.condition_weights.items():
            if name not in THIRTEEN:
                raise UserError(
                    f"Expected the keys of {where}.condition_weights to be findings, but got "
                    f"{name!r}{nearest(name, THIRTEEN)}"
                )
            if not 0 < factor < float("inf"):
                raise UserError(f"Expected {where}.condition_weights.{name} to be above 0, but got {factor}.")

    @property
    def odds(self) -> float:
        """What a mistake costs relative to what a correct finding gains."""
        return self.threshold / (1 - self.threshold)


class NormalBiasReward:
    """Scores reports by one of the parts.

    Args:
        name: `"rare_mccs"`, `"positives"` or `"above_constant"`.
        settings: Settings of all parts.
        margin: Margin of MCCS.
    """

    def __init__(self, name: str, settings: NormalBias, margin: float = 0.5) -> None:
        self.name, self.settings, self.margin = name, settings, margin
        self.learned: Tensor | None = None
        """(13,) weights of the conditions, or (14,) label classes of the best constant report."""

    def learn(self, reports: Sequence[str], labels: Tensor) -> None:
        """Take the weights or the constant from the training split.

        Args:
            reports: N training reports.
            labels: (N, 14) their label classes.

        Raises:
            UserError: If there is no report, or a condition that has a weight occurs in none.
        """
        if not reports:
            raise UserError(
                f"The part {self.name} of the reward is computed from training reports, but there are none."
            )
        if self.name == "rare_mccs":
            self.learned = condition_weights(labels, self.settings.condition_weights)
        elif self.name == "above_constant":
            self.learned = labels[best_report(reports, labels, self.margin)]

    def scores(self, preds: Tensor, target: Tensor) -> Tensor:
        """Reward of each report: (N,) float64, at least 0.

        Args:
            preds: (N, 14) label classes of the generated reports.
            target: (N, 14) label classes of their references.
        """
        preds, target = preds.cpu(), target.cpu()
        if self.name == "positives":
            return positives(preds, target, self.settings.odds)
        if self.learned is None:
            raise UserError(f"The part {self.name} of the reward needs the training reports: call `learn` first.")
        if self.name == "rare_mccs":
            return weighted_mccs(preds, target, self.learned, self.margin)
        own = mccs(preds, target, self.margin, reduction="none")
        constant = mccs(self.learned.expand_as(target), target, self.margin, reduction="none")
        return self.settings.odds * torch.minimum(own, constant) + (own - constant).clamp(min=0)

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned from the training split; empty if it is nothing."""
        return {} if self.learned is None else {"learned": self.learned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what a checkpoint holds, unless `learn` was called, perhaps with settings that have changed since."""
        if self.learned is None:
            self.learned = state.get("learned")


def condition_weights(labels: Tensor, chosen: Mapping[str, float] | str) -> Tensor:
    """(13,) float64 weights of the conditions.

    Args:
        labels: (N, 14) label classes of the training reports.
        chosen: Factors by condition, 1 for all others; or `"inverse_prevalence"`.

    Raises:
        UserError: If a condition that has a factor occurs in no report.
    """
    counts = stated(labels[:, :13]).sum(0).double()
    if isinstance(chosen, str):
        return (
            (counts.max() / counts.clamp(min=1e-9)).clamp(max=MOST) if bool(counts.any()) else torch.ones_like(counts)
        )
    weights = torch.ones_like(counts)
    for name, factor in chosen.items():
        column = CONDITIONS.index(name)
        if not int(counts[column]):
            raise UserError(
                f"No training report states {name}: remove it from "
                "model.init_args.reward.normal_bias.condition_weights."
            )
        weights[column] = factor
    return weights


def weighted_mccs(preds: Tensor, target: Tensor, weights: Tensor, margin: float = 0.5) -> Tensor:
    """MCCS with weights of the conditions, see the table above; with equal weights it is MCCS.

    Args:
        preds: (N, 14) label classes; an uncertain finding counts as positive.
        target: (N, 14) label classes.
        weights: (13,) weights above 0.
        margin: Margin of MCCS.

    Returns:
        (N,) float64 in [0, 1]; 1 if neither report mentions a condition.
    """
    a, b = (stated(x[:, :13]).double() - (x[:, :13] == NEGATIVE).double() for x in (preds, target))
    dot, norms = (weights * a * b).sum(1), (weights * a * a).sum(1) * (weights * b * b).sum(1)
    cosine = torch.where(norms > 0, dot / norms.clamp(min=1e-300).sqrt(), 0.0)
    both = (a == 0).all(1) & (b == 0).all(1)
    return ((torch.where(both, 1.0, cosine) - margin) / (1 - margin)).clamp(min=0)


def positives(preds: Tensor, target: Tensor, odds: float) -> Tensor:
    """Agreement of the findings that are stated, see the table above.

    The measure is that of Ochiai (1957), the cosine of two sets.

    Args:
        preds: (N, 14) label classes; an uncertain finding counts as stated.
        target: (N, 14) label classes.
        odds: Score where neither report states a finding.

    Returns:
        (N,) float64 in [0, 1].
    """
    a, b = (stated(x[:, :13]).double() for x in (preds, target))
    sizes = a.sum(1) * b.sum(1)
    shared = (a * b).sum(1) / sizes.clamp(min=1).sqrt()
    return torch.where((a + b).any(1), shared, odds)


def learn_all(rewards: Mapping[str, NormalBiasReward], reports: Sequence[str], labeler: Labeler) -> None:
    """Take from the training split what the parts need; labels it once, or evenly spaced reports of a large one."""
    if rewards:
        texts = [text for text in evenly_spaced(reports) if text.strip()]
        labels = label_together(labeler, texts)[0].cpu()
        for reward in rewards.values():
            reward.learn(texts, labels)
