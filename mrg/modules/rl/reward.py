"""Texts -> rewards: a weighted sum of clinical similarity, CE-F1, the format, and any other score of a report.

Choices: a reward that raises or is not finite stops the run and names the study; it never becomes 0. A scorer may
return None for a report to which it does not apply: that part is missing there and is left out of the sum. A completion
without a report section is paid nothing for what it says, before anything is scored; a part that is negative would make
that attractive, which is said once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.ce import ratio, report_counts
from mrg.metrics.format import format_score, parse_completion
from mrg.metrics.mccs import mccs
from mrg.metrics.scorer import load_scorer
from mrg.metrics.trl import RewardError, as_reward
from mrg.modules.ranks import say
from mrg.modules.rl.advantage import combine_rewards


@dataclasses.dataclass
class WeightedScorer:
    """A further part of the reward.

    Args:
        scorer: `"package.module:function"`: takes two lists of texts, reports and references, and returns a number for
            each report, or None where the score does not apply to it.
        weight: Its weight in the reward.
        name: Under which it is logged, `reward/<name>`; the function's name by default.
    """

    scorer: str
    weight: float = 1.0
    name: str = ""


class Rewards(NamedTuple):
    """Rewards of N completions.

    Args:
        total: (N,) float64; 0 where nothing could be scored.
        parts: Name -> (N,), unweighted; 0 where the part is missing.
        labels: (N, 14) label classes of the completions' reports, and of the references.
        present: Name -> (N,) bool for each part that may be missing.
        scored: (N,) bool, True where a reward exists; `None` says everywhere.
    """

    total: Tensor
    parts: dict[str, Tensor]
    labels: tuple[Tensor, Tensor]
    present: Mapping[str, Tensor] = {}
    scored: Tensor | None = None


def join_rewards(parts: Sequence[Rewards]) -> Rewards:
    """Rewards after each other, of the same parts."""

    def joined(name: str) -> Tensor:
        return torch.cat([_present(x.present.get(name), x) for x in parts])

    return Rewards(
        torch.cat([x.total for x in parts]),
        {name: torch.cat([x.parts[name] for x in parts]) for name in parts[0].parts},
        (torch.cat([x.labels[0] for x in parts]), torch.cat([x.labels[1] for x in parts])),
        {name: joined(name) for name in sorted({name for x in parts for name in x.present})},
        torch.cat([_present(x.scored, x) for x in parts]),
    )


def _present(given: Tensor | None, rewards: Rewards) -> Tensor:
    return torch.ones_like(rewards.total, dtype=torch.bool) if given is None else given


def replace_rewards(rewards: Rewards, again: Rewards, rows: Tensor) -> Rewards:
    """Rewards of which some rows are replaced.

    Args:
        rewards: Of N completions.
        again: Of as many as are replaced, of the same parts.
        rows: Which ones, on the CPU.
    """
    order = torch.arange(len(rewards.total))
    order[rows] = len(order) + torch.arange(len(rows))
    both = join_rewards([rewards, again])
    return Rewards(
        both.total[order],
        {name: part[order] for name, part in both.parts.items()},
        (both.labels[0][order], both.labels[1][order]),
        {name: present[order] for name, present in both.present.items()},
        None if both.scored is None else both.scored[order],
    )


class Reward:
    """`mccs_weight * MCCS + ce_f1_weight * CE-F1 + format_weight * format + sum of weight * score over the scorers`.

    MRG-R1 is the first and the third, .75 and .25. MCCS and CE-F1 come from the same labels and are computed, and
    logged, whatever their weights are. CE-F1 is that of one report over 13 conditions, uncertain counted as positive;
    a report that rightly states none of them earns 1, for 0 would leave it no reason not to invent.

    Args:
        labeler: Labels reports, see `mrg.metrics.labels.Labeler`.
        mccs_weight: Weight of MCCS; .75 in the paper.
        format_weight: Weight of the format score; .25 in the paper.
        margin: Margin of MCCS.
        think: `"required"` or `"absent"`: the format that is paid.
        ce_f1_weight: Weight of CE-F1.
        scorers: Further parts.

    Raises:
        ValueError: If all weights are 0, or two parts have the same name.
    """

    def __init__(
        self,
        labeler: Any,
        mccs_weight: float = 0.75,
        format_weight: float = 0.25,
        margin: float = 0.5,
        think: str = "required",
        ce_f1_weight: float = 0.0,
        scorers: Sequence[WeightedScorer] = (),
    ) -> None:
        self.labeler = labeler
        self.margin, self.think = margin, think
        self.weights = {"mccs": mccs_weight, "ce_f1": ce_f1_weight, "format": format_weight}
        self.scorers = []
        self.warned: set[str] = set()
        for part in scorers:
            scorer = as_reward(load_scorer(part.scorer), think=think, name=part.name or None)
            if scorer.__name__ in self.weights:
                raise UserError(
                    f"Expected the parts of the reward to have different names, but got {scorer.__name__!r} twice: set "
                    "`name` in model.init_args.reward.scorers."
                )
            self.weights[scorer.__name__] = part.weight
            self.scorers.append(scorer)
        if not any(self.weights.values()):
            raise UserError(
                "Expected a weight other than 0 in the reward: set model.init_args.reward.mccs_weight, ce_f1_weight, "
                "format_weight or scorers."
            )

    def __call__(self, texts: Sequence[str], target: Sequence[str], study_id: Sequence[str]) -> Rewards:
        """Reward N completions.

        Returns:
            The parts are `mccs`, `ce_f1`, `format`, and the scorers by their names.

        Raises:
            RewardError: If the labeler or a scorer fails, or a reward is not finite.
        """
        reports = [parse_completion(text, self.think).report for text in texts]
        preds, references = self._labels(reports, target, study_id)
        written = torch.tensor([bool(report) for report in reports])
        parts = {
            "mccs": mccs(preds, references, self.margin, reduction="none").where(written, 0.0),
            "ce_f1": ratio(report_counts(preds, references, "positive")[:, :, :13].sum(2), "f1", 1).where(written, 0.0),
            "format": format_score(texts, self.think),
        }
        present = {}
        for scorer in self.scorers:
            scores = scorer(texts, target=target, study_id=study_id)
            name = scorer.__name__
            present[name] = torch.tensor([score is not None for score in scores])
            parts[name] = torch.tensor([0.0 if score is None else score for score in scores], dtype=torch.float64)
        self._warn_of_paid_silence(parts, present, written)
        total, scored = combine_rewards(parts, self.weights, present)
        if not bool(total.isfinite().all()):
            worst = int((~total.isfinite()).nonzero()[0])
            raise RewardError(f"The reward of study {study_id[worst]} is {float(total[worst])}, not a finite number.")
        return Rewards(total, parts, (preds, references), present, scored)

    def _warn_of_paid_silence(
        self, parts: Mapping[str, Tensor], present: Mapping[str, Tensor], written: Tensor
    ) -> None:
        """Say once of each part that it takes from a report what no report loses: a missing one has 0 there."""
        for name, part in parts.items():
            paid = self.weights[name] * part.double()
            scored = present.get(name, torch.ones_like(written)) & written
            negative = scored & (paid < 0)
            if name == "format" or name in self.warned or not bool(negative.any()):
                continue
            self.warned.add(name)
            say(
                f"The reward's part {name!r} is negative ({float(paid[negative].min()):.2g} with its weight) for "
                f"{int(negative.sum())} of {int(scored.sum())} reports, where a completion without a report gets 0: "
                "this pays for silence. Shift the score, or turn it round, so that with its weight it is never below 0."
            )

    def _labels(self, reports: Sequence[str], target: Sequence[str], study_id: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Label classes of reports and references, (N, 14) each."""
        try:
            # One call labels both sides; the labeler caches by text, and a group shares its reference.
            labels = self.labeler([*reports, *target])
        except Exception as error:
            name = self._culprit(reports, target, study_id)
            raise RewardError(f"The labeler failed on study {name}: {error}") from error
        return labels[: len(reports)], labels[len(reports) :]

    def _culprit(self, reports: Sequence[str], target: Sequence[str], study_id: Sequence[str]) -> str:
        """The first study whose texts the labeler cannot read alone; all of them where only the batch fails."""
        for name, *texts in zip(study_id, reports, target, strict=True):
            try:
                self.labeler(texts)
            except Exception:  # whatever it was, the caller raises it with this name
                return name
        return f"{study_id[0]} to {study_id[-1]} (each alone can be labelled)"
