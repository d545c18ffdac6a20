"""The soft overlong penalty as a part of the reward (Yu et al., DAPO, 2025).

A completion of at most `max_tokens - cache` tokens gets 1, one of `max_tokens` gets 0, and in between the score falls
linearly. This is the penalty of the paper and of TRL (from 0 to -1) plus 1, so that no completion is worth less than an
empty one; what is added to all completions cancels within a group.
"""

from __future__ import annotations

from torch import Tensor

from mrg.modules.rl.reward import Rewards


def overlong_scores(length: Tensor, max_tokens: int, cache: int) -> Tensor:
    """Score of each completion: (N,) float64 in [0, 1].

    Args:
        length: (N,) tokens of the completions.
        max_tokens: Largest number of tokens of a completion.
        cache: Number of tokens over which the score falls, at least 1.
    """
    return ((max_tokens - length.double()) / cache).clamp(0, 1)


def with_overlong(rewards: Rewards, length: Tensor, max_tokens: int, cache: int, weight: float) -> Rewards:
    """Rewards with the part `overlong`; a completion without any reward keeps none.

    Args:
        rewards: Rewards of N completions.
        length: (N,) tokens of the completions, on the CPU.
        max_tokens: Largest number of tokens of a completion.
        cache: Number of tokens over which the score falls.
        weight: Weight of the part.
    """
    scores = overlong_scores(length, max_tokens, cache)
    added = weight * scores if rewards.scored is None else (weight * scores).where(rewards.scored, 0.0)
    return rewards._replace(total=rewards.total + added, parts=rewards.parts | {"overlong": scores})
