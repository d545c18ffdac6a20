"""Corpus F1 as a sum over reports: the reward for rare findings.

F1 over a corpus, 2 TP / (P_hat + P), is not a mean over reports, and a per-report score is no substitute: if it rewards
silence on a normal study, a finding is worth stating only above a probability of 1/2, which a rare finding seldom
reaches. The F1-optimal threshold is F*/2, half the best F1 (Lipton, Elkan and Naryanaswamy, 2014).

Dinkelbach (1967): the ratio is maximised by maximising 2 TP - F (P_hat + P) at the current F. P does not depend on the
policy, and the rest is a sum over reports. With s_c = 1 where a report states condition c, and t_c = 1 where its
reference does,

    reward = sum over c of  w_c (s_c (2 t_c - F_c) + F_c)

so a finding of probability p raises the expected reward where p > F_c / 2. The constant F_c keeps the reward from being
negative: a missing report gets 0, and that must never be an advantage. Within a group the constant cancels.

| average | F_c | w_c |
|---|---|---|
| `micro` | one F of all counts | 1 |
| `macro` | F of each condition | mean of D / D_c, D_c = P_hat_c + P_c: the gradient of mean F_c; at most `MAX_WEIGHT` |

The same holds for what a report rules out: `denials` counts negative mentions in place of findings. Paid together, the
two reward correct denials without a charge for stating findings elsewhere, which a cosine such as MCCS makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.conditions import NEGATIVE, POSITIVE, UNCERTAIN, condition_indices

MAX_WEIGHT = 10.0
"""Upper limit of a condition's weight in the macro form: a condition seen in one report of a thousand is noise."""
PRIOR = 0.05
"""Stated plus true findings per report and condition before the first round."""


@dataclasses.dataclass(frozen=True)
class CorpusF1:
    """Settings of the corpus-F1 rewards.

    Args:
        average: `"micro"`: one F1 over all conditions; `"macro"`: an F1 for each condition.
        conditions: 13 (without No Finding), 14, 5, or a list of names.
        uncertain: Whether an uncertain finding counts as `"positive"` or `"negative"`.
        source: Where F comes from: `"rounds"`: an exponential average over the rounds of all processes; `"validation"`:
            the last validation; `"fixed"`: `start` throughout.
        start: F before the first round or validation, in [0, 1].
        decay: Weight of the past in the exponential average, in [0, 1).

    Raises:
        UserError: If a setting is out of range.
    """

    average: Literal["micro", "macro"] = "micro"
    conditions: int | list[str] = 13
    uncertain: Literal["positive", "negative"] = "positive"
    source: Literal["rounds", "validation", "fixed"] = "rounds"
    start: float = 0.2
    decay: float = 0.9

    def __post_init__(self) -> None:
        for name, choices in (
            ("average", ("micro", "macro")),
            ("uncertain", ("positive", "negative")),
            ("source", ("rounds", "validation", "fixed")),
        ):
            if getattr(self, name) not in choices:
                *most, last = (repr(choice) for choice in choices)
                raise UserError(
                    f"Expected model.init_args.reward.corpus_f1.{name} to be {', '.join(most)} or {last}, "
                    f"but got {getattr(self, name)!r}."
                )
        for name, value, top, fits in (
            ("start", self.start, "1", 0 <= self.start <= 1),
            ("decay", self.decay, "1 (exclusive)", 0 <= self.decay < 1),
        ):
            if not fits:
                raise UserError(
                    f"Expected model.init_args.reward.corpus_f1.{name} to be from 0 to {top}, but got {value}."
                )
        condition_indices(self.conditions)


class CorpusF1Reward:
    """Scores reports by their contribution to the corpus F1, and keeps track of that F1.

    Args:
        settings: Settings of the reward.
        denials: Count negative mentions in place of findings.
    """

    def __init__(self, settings: CorpusF1, denials: bool = False) -> None:
        self.settings = settings
        self.columns = condition_indices(settings.conditions)
        classes = [NEGATIVE] if denials else [POSITIVE] + [UNCERTAIN] * (settings.uncertain == "positive")
        self.counted = torch.zeros(4, dtype=torch.bool)
        self.counted[classes] = True
        # (3, C): true positives, stated and true findings per report.
        prior = torch.tensor([settings.start / 2, 0.5, 0.5], dtype=torch.float64) * PRIOR
        self.counts = prior[:, None].repeat(1, len(self.columns))

    @property
    def f1(self) -> Tensor:
        """(C,) float64: F1 of each condition, all equal in the micro form."""
        if self.settings.source == "fixed":
            return torch.full((len(self.columns),), self.settings.start, dtype=torch.float64)
        counts = self.counts
        if self.settings.average == "micro":
            counts = counts.sum(1, keepdim=True).expand_as(counts)
        return 2 * counts[0] / (counts[1] + counts[2]).clamp(min=1e-12)

    @property
    def weights(self) -> Tensor:
        """(C,) float64: weight of each condition."""
        total = self.counts[1] + self.counts[2]
        if self.settings.average == "micro":
            return torch.ones_like(total)
        return (total.mean() / total.clamp(min=1e-12)).clamp(max=MAX_WEIGHT)

    def scores(self, preds: Tensor, target: Tensor) -> Tensor:
        """Reward of each report: (N,) float64, at least 0.

        Args:
            preds: (N, 14) label classes of the generated reports.
            target: (N, 14) label classes of their references.
        """
        stated, true = (self.counted[labels.cpu()][:, self.columns].double() for labels in (preds, target))
        f1 = self.f1
        return ((stated * (2 * true - f1) + f1) * self.weights).sum(1)

    def update(self, preds: Tensor, target: Tensor, importance: Tensor | None = None) -> None:
        """Take in a round.

        Args:
            preds: (N, 14) label classes of the completions of all processes.
            target: (N, 14) label classes of their references.
            importance: (N,) weights of their studies, if these are not drawn equally often; 1 by default.
        """
        weights = torch.ones(len(preds)) if importance is None else importance.cpu()
        if self.settings.source == "rounds" and bool(weights.any()):
            stated, true = (self.counted[labels.cpu()][:, self.columns].double() for labels in (preds, target))
            share = (weights.double() / weights.double().sum())[:, None]
            counts = torch.stack([(share * part).sum(0) for part in (stated * true, stated, true)])
            self.counts = self.settings.decay * self.counts + (1 - self.settings.decay) * counts

    def validated(self, table: Tensor) -> None:
        """Take in a validation.

        Args:
            table: (14, 4, 4) counts, see `mrg.metrics.ce.confusion`, of all processes.
        """
        if self.settings.source == "validation" and int(table.sum()):
            parts = table.cpu()[self.columns].double() / int(table[0].sum())
            stated, true = parts[:, :, self.counted].sum((1, 2)), parts[:, self.counted].sum((1, 2))
            self.counts = torch.stack([parts[:, self.counted][:, :, self.counted].sum((1, 2)), stated, true])

    def state_dict(self) -> dict[str, Any]:
        """The running counts, and what they count."""
        return {"counts": self.counts, "counted": self._counted()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the running counts of a checkpoint, unless the settings say to count something else now."""
        if state.get("counted", self._counted()) == self._counted():
            self.counts = state["counts"].double()

    def _counted(self) -> list[list[int]]:
        """Columns and classes that are counted."""
        return [list(self.columns), self.counted.nonzero()[:, 0].tolist()]


def corpus_rewards(settings: CorpusF1 | None, names: Sequence[str]) -> dict[str, CorpusF1Reward]:
    """Corpus-F1 rewards by name.

    Args:
        settings: Settings of all; the defaults if None.
        names: `corpus_f1` for findings, `denial_f1` for what is ruled out.
    """
    settings = settings or CorpusF1()
    return {name: CorpusF1Reward(settings, denials=name == "denial_f1") for name in names}
