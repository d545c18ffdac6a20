"""How the groups of a round are cut into optimiser steps, and these into passes that fit into memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrg.errors import UserError

if TYPE_CHECKING:
    from mrg.modules.rollout.sampling import Rollout


@dataclasses.dataclass
class Step:
    """What one optimiser step is made of.

    Args:
        rollout: Of the whole round.
        advantages: (N,).
        ref_logps: (N, C), or None without a KL term.
        groups: Groups of this step.
        on_policy: Whether the old log-probabilities are the policy's own.
        num_completions: Completions of the step, the mean over ranks.
        num_tokens: Tokens that it is normalised by, the mean over ranks.
        old_logps: (N, C) of the policy at the round's start, where others than it sampled and a round makes several
            steps; None takes the sampler's, or on policy the policy's own.
    """

    rollout: Rollout
    advantages: Tensor
    ref_logps: Tensor | None
    groups: list[int]
    on_policy: bool
    num_completions: float = 1.0
    num_tokens: float = 1.0
    old_logps: Tensor | None = None


def check_round(num_groups: int, num_minibatches: int) -> None:
    """Refuse more optimiser steps than there are studies in a round.

    Raises:
        ValueError: If there are.
    """
    if num_minibatches > num_groups:
        raise UserError(
            f"Expected at least as many studies in a round as model.init_args.num_minibatches ({num_minibatches}), "
            f"but got {num_groups}: raise data.init_args.batch_size where there are more, or lower num_minibatches."
        )


def minibatches(num_groups: int, num_minibatches: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Groups of each optimiser step, as even as possible; in a drawn order where there is a generator.

    Raises:
        ValueError: If there are fewer groups than steps.
    """
    check_round(num_groups, num_minibatches)
    order = list(range(num_groups)) if generator is None else torch.randperm(num_groups, generator=generator).tolist()
    bounds = [num_groups * i // num_minibatches for i in range(num_minibatches + 1)]
    return [order[start:stop] for start, stop in pairwise(bounds)]


def micro_batches(groups: Sequence[int], num_tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Cut groups into passes of at most `budget` tokens; a group is never cut, so that one alone may be larger.

    Args:
        groups: Which groups, in order.
        num_tokens: Tokens of every group of the round: its prompt once and all of its completions.
        budget: Tokens of one forward and backward pass.
    """
    parts: list[list[int]] = []
    used = 0
    for group in groups:
        if parts and used + num_tokens[group] <= budget:
            parts[-1].append(group)
            used += num_tokens[group]
        else:
            parts.append([group])
            used = num_tokens[group]
    return parts
