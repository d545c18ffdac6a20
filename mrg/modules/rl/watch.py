"""A held-out score that is not the reward, and whether the reward rises while it falls.

A policy that exploits its reward is paid more and more for reports that other scores find worse. The watched score is
that of greedy reports on the validation split: CE-F1 if the reward has none, otherwise MCCS if the reward has none,
otherwise the macro CE-F1, in which rare findings count as much as frequent ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

NUM_VALIDATIONS = 3
"""Number of consecutive validations over which the reward must rise and the score fall."""
CE, COSINE = ("ce_f1", "corpus_f1", "positives"), ("mccs", "rare_mccs", "above_constant")


def watched_score(weights: Mapping[str, float]) -> str:
    """Name of the score that is watched: `"ce_f1"`, `"mccs"` or `"ce_f1_macro"`.

    Args:
        weights: Weights of the parts of the reward.
    """
    if not any(weights.get(name) for name in CE):
        return "ce_f1"
    return "ce_f1_macro" if any(weights.get(name) for name in COSINE) else "mccs"


class Watch:
    """Compares the mean reward between two validations with the watched score.

    Args:
        weights: Weights of the parts of the reward.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.score = watched_score(weights)
        self.rewards: list[float] = []
        """Mean rewards of the rounds since the last validation, over all ranks."""
        self.history: list[list[float]] = []

    def validated(self, score: float) -> bool | None:
        """Take in the score of a validation.

        Returns:
            Whether the reward has risen and the score has fallen at each of the last validations; None if there were
            too few.
        """
        if not self.rewards:
            return None
        self.history = [*self.history, [sum(self.rewards) / len(self.rewards), score]][-NUM_VALIDATIONS:]
        self.rewards = []
        if len(self.history) < NUM_VALIDATIONS:
            return None
        pairs = pairwise(self.history)
        return all(later[0] > earlier[0] and later[1] < earlier[1] for earlier, later in pairs)

    def describe(self) -> str:
        """Sentence for the log."""
        (first, before), (last, after) = self.history[0], self.history[-1]
        return (
            f"The reward rises ({first:.3f} to {last:.3f} over {NUM_VALIDATIONS} validations) while val/{self.score} "
            f"falls ({100 * before:.1f} % to {100 * after:.1f} %): the policy may exploit the reward. `mrg audit` "
            "shows what it pays to reports that ignore the image."
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"rewards": self.rewards, "history": self.history, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint, unless it is of another reward, with which none can be compared."""
        if state.get("weights", self.weights) == self.weights:
            self.rewards, self.history = list(state["rewards"]), [list(pair) for pair in state["history"]]
