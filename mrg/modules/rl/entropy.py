"""Entropy of the policy: a bonus, fixed or adaptive, and a loss on uncertain tokens alone.

| setting of `loss.entropy` | effect | source |
|---|---|---|
| `coef` | the loss is lowered by coef times the mean entropy of the step's tokens | Mnih et al., A3C, 2016 |
| `target` | coef rises by `delta` after a step of at most this entropy, and falls after others | He et al., 2025 |
| `top_quantile` | only this share of the tokens, the most uncertain ones, enters the policy loss | Wang et al., 2025 |

(He et al., "Skywork open reasoner 1"; Wang et al., "Beyond the 80/20 rule".) The mean is over all tokens of the step on
all ranks that enter the loss, whatever the loss type. With a target, the bonus of a step is applied only if the entropy
of the step before was at most the target, as in TRL. The uncertain tokens are chosen once per round, by their entropy
under the policy at its start, among the tokens of all ranks, so that the choice depends neither on micro-batches nor on
ranks; this takes one more forward pass. TRL chooses them in each micro-batch, by the same formula.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mrg.errors import UserError


@dataclasses.dataclass(frozen=True)
class EntropySettings:
    """Entropy of the policy in the loss, see `mrg.modules.rl.entropy`.

    Args:
        coef: Weight of the entropy bonus; with a target, its initial value.
        target: Entropy in nats per token up to which the bonus is raised; None keeps the weight fixed.
        delta: Change of the weight per step, with a target.
        least: Smallest weight, with a target.
        most: Largest weight, with a target.
        top_quantile: Share of tokens, those with the highest entropy, that enter the policy loss and the bonus.

    Raises:
        UserError: If a setting is out of range.
    """

    coef: float = 0.0
    target: float | None = None
    delta: float = 0.005
    least: float = 0.0
    most: float = 1.0
    top_quantile: float = 1.0

    def __post_init__(self) -> None:
        for name, value, expected, fits in (
            ("coef", self.coef, "at least 0", 0 <= self.coef < math.inf),
            ("target", self.target, "above 0", self.target is None or 0 < self.target < math.inf),
            ("delta", self.delta, "above 0", 0 < self.delta < math.inf),
            ("least", self.least, f"from 0 to most ({self.most})", 0 <= self.least <= self.most < math.inf),
            ("top_quantile", self.top_quantile, "above 0 and at most 1", 0 < self.top_quantile <= 1),
        ):
            if not fits:
                raise UserError(f"Expected model.init_args.loss.entropy.{name} to be {expected}, but got {value}.")

    @property
    def has_bonus(self) -> bool:
        """Whether there is a bonus in any step."""
        return self.coef > 0 or self.target is not None


class EntropyBonus:
    """The weight of the bonus, and how it follows its target.

    Args:
        settings: Settings.
    """

    def __init__(self, settings: EntropySettings) -> None:
        self.settings, self.coef, self.entropy = settings, settings.coef, math.inf

    @property
    def applied(self) -> float:
        """Weight in this step."""
        target = self.settings.target
        return self.coef if target is None or self.entropy <= target else 0.0

    def update(self, entropy: float) -> None:
        """Take in the mean entropy of a step, over the tokens of all ranks."""
        if self.settings.target is not None:
            below = entropy <= self.settings.target
            if below:
                self.coef = min(self.coef + self.settings.delta, self.settings.most)
            else:
                self.coef = max(self.coef - self.settings.delta, self.settings.least)
        self.entropy = entropy

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"coef": self.coef, "entropy": self.entropy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint; a fixed weight is that of the settings."""
        self.entropy = float(state["entropy"])
        if self.settings.target is not None:
            self.coef = float(state["coef"])


def entropy_term(entropy: Tensor, mask: Tensor, coef: float, num_tokens: float) -> Tensor:
    """Share of some tokens in the bonus of a step, to be added to the loss.

    Args:
        entropy: (N, C) entropies, with gradient.
        mask: (N, C) bool, True at tokens that count.
        coef: Weight of the bonus.
        num_tokens: Tokens of the whole step that count.
    """
    return -coef * entropy.where(mask, 0.0).sum() / max(num_tokens, 1)


def entropy_threshold(entropy: Tensor, top_quantile: float) -> float:
    """Entropy from which on a token belongs to the most uncertain ones; infinite without tokens.

    Args:
        entropy: (T,) entropies of the tokens of all ranks.
        top_quantile: Share of tokens to keep.
    """
    if not len(entropy):
        return math.inf
    return float(torch.quantile(entropy.float(), 1 - top_quantile))
