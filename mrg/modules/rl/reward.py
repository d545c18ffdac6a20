"""Texts -> rewards: a weighted sum of MCCS, CE-F1, the valid format, and any other score of a report.

Choices: a reward that raises or is not finite stops the run and names the study; it never becomes 0. A scorer may
return None for a report to which it does not apply: that part is missing there and is left out of the sum. A completion
without a report gets 0 for every part that scores reports, without being scored; a negative part would make that
attractive, which is logged once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrg.errors import MrgError, UserError, where_raised
from mrg.log import log
from mrg.metrics import CEF1, MCCS
from mrg.metrics.format import format_score, parse_completion
from mrg.metrics.labels import run_labeler
from mrg.metrics.scorer import load_scorer
from mrg.metrics.trl import RewardError, as_reward
from mrg.modules.rl.advantage import combine_rewards
from mrg.modules.rl.corpus_f1 import CorpusF1, corpus_rewards
from mrg.modules.rl.normal_bias import NormalBias, NormalBiasReward


@dataclasses.dataclass
class WeightedScorer:
    """A further part of the reward.

    Args:
        scorer: `"package.module:function"`, which takes two lists of texts, reports and references, and returns a
            number for each report, or None if the score does not apply to it.
        weight: Weight of the score in the reward.
        name: Name under which it is logged, `reward/<name>`; the function's name by default.
    """

    scorer: str
    weight: float = 1.0
    name: str = ""


class Rewards(NamedTuple):
    """Rewards of N completions.

    Args:
        total: (N,) float64 rewards; 0 where nothing could be scored.
        parts: Name -> (N,) unweighted scores; 0 where the part is missing.
        labels: (N, 14) label classes of the completions' reports, and of the references.
        present: Name -> (N,) bool for each part that may be missing.
        scored: (N,) bool, True where a reward exists; None if all exist.
    """

    total: Tensor
    parts: dict[str, Tensor]
    labels: tuple[Tensor, Tensor]
    present: Mapping[str, Tensor] = {}
    scored: Tensor | None = None

    def take(self, rows: Tensor) -> Rewards:
        """Rewards of some completions, in the order of the rows."""
        return Rewards(
            self.total[rows],
            {name: part[rows] for name, part in self.parts.items()},
            (self.labels[0][rows], self.labels[1][rows]),
            {name: present[rows] for name, present in self.present.items()},
            None if self.scored is None else self.scored[rows],
        )


def join_rewards(parts: Sequence[Rewards]) -> Rewards:
    """Concatenate rewards with the same parts."""

    def present(rewards: Rewards, given: Tensor | None) -> Tensor:
        return torch.ones_like(rewards.total, dtype=torch.bool) if given is None else given

    names = sorted({name for x in parts for name in x.present})
    return Rewards(
        torch.cat([x.total for x in parts]),
        {name: torch.cat([x.parts[name] for x in parts]) for name in parts[0].parts},
        (torch.cat([x.labels[0] for x in parts]), torch.cat([x.labels[1] for x in parts])),
        {name: torch.cat([present(x, x.present.get(name)) for x in parts]) for name in names},
        torch.cat([present(x, x.scored) for x in parts]),
    )


def replace_rewards(rewards: Rewards, again: Rewards, rows: Tensor) -> Rewards:
    """Replace the rewards of some completions.

    Args:
        rewards: Rewards of N completions.
        again: New rewards, with the same parts.
        rows: Rows of the completions that they belong to, on the CPU.
    """
    order = torch.arange(len(rewards.total))
    order[rows] = len(order) + torch.arange(len(rows))
    return join_rewards([rewards, again]).take(order)


class Reward:
    """`mccs_weight * MCCS + ce_f1_weight * CE-F1 + format_weight * format + sum of weight * score over further parts`.

    MRG-R1 uses the first and the third, .75 and .25. MCCS and CE-F1 are computed from the same labels and logged,
    whatever their weights are. CE-F1 is that of a single report over 13 conditions, uncertain counted as positive; a
    report that is right to state none of them gets 1, because 0 would give it no reason not to hallucinate.

    Args:
        labeler: Labeler of reports.
        mccs_weight: Weight of MCCS.
        format_weight: Weight of the format score.
        margin: Margin of MCCS.
        think: Valid format, `"required"` or `"absent"`.
        ce_f1_weight: Weight of CE-F1.
        scorers: Further parts.
        corpus_f1_weight: Weight of the corpus F1 of findings, see `mrg.modules.rl.corpus_f1`.
        denial_f1_weight: Weight of the corpus F1 of what is ruled out.
        corpus_f1: Settings of both; the defaults if None.
        rare_mccs_weight: Weight of MCCS with weights of the conditions, see `mrg.modules.rl.normal_bias`.
        positives_weight: Weight of the agreement of the stated findings.
        above_constant_weight: Weight of MCCS above the best constant report.
        normal_bias: Settings of these three; the defaults if None.

    Raises:
        UserError: If all weights are 0, two parts have the same name, or a part that compares labels has no labeler.
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
        corpus_f1_weight: float = 0.0,
        denial_f1_weight: float = 0.0,
        corpus_f1: CorpusF1 | None = None,
        rare_mccs_weight: float = 0.0,
        positives_weight: float = 0.0,
        above_constant_weight: float = 0.0,
        normal_bias: NormalBias | None = None,
    ) -> None:
        self.labeler, self.think = labeler, think
        corpus = {"corpus_f1": corpus_f1_weight, "denial_f1": denial_f1_weight}
        self.corpus = corpus_rewards(corpus_f1, [name for name, weight in corpus.items() if weight])
        if self.corpus and labeler is None:
            raise UserError("Corpus F1 compares findings: set model.init_args.labeler.")
        unbiased = {
            "rare_mccs": rare_mccs_weight, "positives": positives_weight, "above_constant": above_constant_weight,
        }  # fmt: skip
        self.normal_bias = {
            name: NormalBiasReward(name, normal_bias or NormalBias(), margin) for name in unbiased if unbiased[name]
        }
        self.metrics: dict[str, MCCS | CEF1] = {
            "mccs": MCCS(margin=margin),
            "ce_f1": CEF1(average="example", zero_division=1),
        }
        self.weights = {"mccs": mccs_weight, "ce_f1": ce_f1_weight, "format": format_weight}
        self.weights |= {name: corpus[name] for name in self.corpus}
        self.weights |= {name: unbiased[name] for name in self.normal_bias}
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
                "corpus_f1_weight, denial_f1_weight, rare_mccs_weight, positives_weight, above_constant_weight, "
                "format_weight or scorers."
            )

    def __call__(self, texts: Sequence[str], target: Sequence[str], study_id: Sequence[str]) -> Rewards:
        """Reward N completions.

        Args:
            texts: N completions.
            target: N reference reports.
            study_id: N ids of studies, for messages.

        Returns:
            Rewards with the parts `mccs`, `ce_f1`, `format`, the corpus-F1 parts, and the scorers by name.

        Raises:
            RewardError: If the labeler or a scorer fails, or a reward is not finite.
        """
        reports = [parse_completion(text, self.think).report for text in texts]
        labels = self._labels(reports, target, study_id)  # (N, 14) each
        written = torch.tensor([bool(report) for report in reports])  # (N,)
        parts = {name: part.where(written, 0.0) for name, part in self.label_parts(*labels).items()}
        parts["format"] = format_score(texts, self.think)
        present = {}
        for scorer in self.scorers:
            scores = scorer(texts, target=target, study_id=study_id)
            name = scorer.__name__
            present[name] = torch.tensor([score is not None for score in scores])
            parts[name] = torch.tensor([0.0 if score is None else score for score in scores], dtype=torch.float64)
        self._warn_of_rewarded_silence(parts, present, written)
        total, scored = combine_rewards(parts, self.weights, present)
        if not bool(total.isfinite().all()):
            worst = int((~total.isfinite()).nonzero()[0])
            raise RewardError(f"The reward of study {study_id[worst]} is {float(total[worst])}, not a finite number.")
        return Rewards(total, parts, labels, present, scored)

    def label_parts(self, preds: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Unweighted parts that depend on labels alone: name -> (N,), for (N, 14) label classes of both sides."""
        scorers = {**self.metrics, **self.corpus, **self.normal_bias}
        return {name: scorer.scores(preds, target) for name, scorer in scorers.items()}

    def _warn_of_rewarded_silence(
        self, parts: Mapping[str, Tensor], present: Mapping[str, Tensor], written: Tensor
    ) -> None:
        """Warn once about each part that can make a report worse than no report, which gets 0."""
        for name, part in parts.items():
            weighted = self.weights[name] * part.double()
            scored = present.get(name, torch.ones_like(written)) & written
            negative = scored & (weighted < 0)
            if name == "format" or name in self.warned or not bool(negative.any()):
                continue
            self.warned.add(name)
            log.warning(
                f"The reward's part {name!r} is negative ({float(weighted[negative].min()):.2g} with its weight) for "
                f"{int(negative.sum())} of {int(scored.sum())} reports, where a completion without a report gets 0: "
                "this rewards silence. Shift the score or change its sign, so that with its weight it is never below 0."
            )

    def _labels(self, reports: Sequence[str], target: Sequence[str], study_id: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(N, 14) label classes of reports and of references; one call labels both."""
        try:
            labels = run_labeler(self.labeler, [*reports, *target])
        except Exception as error:
            name, cause = self._first_failure(reports, target, study_id, error)
            reason = str(cause) if isinstance(cause, MrgError) else where_raised(cause)
            raise RewardError(f"The labeler failed on study {name}: {reason}") from error
        return labels[: len(reports)], labels[len(reports) :]

    def _first_failure(
        self, reports: Sequence[str], target: Sequence[str], study_id: Sequence[str], of_batch: Exception
    ) -> tuple[str, Exception]:
        """First study whose texts fail alone, and its error; all studies and the batch's if only the batch fails."""
        for name, *texts in zip(study_id, reports, target, strict=True):
            try:
                run_labeler(self.labeler, texts)
            except Exception as error:  # whatever it is, the caller raises it with this name
                return name, error
        return f"{study_id[0]} to {study_id[-1]} (each alone can be labeled)", of_batch
