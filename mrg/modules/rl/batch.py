"""Split rounds into optimizer steps, and steps into micro-batches of whole groups that fit into memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.modules.rl.loss import LossType
from mrg.modules.rollout.sampling import Rollout, group_rows


@dataclasses.dataclass
class Step:
    """Input of one optimizer step: a round of N completions, and the groups of the step.

    Args:
        rollout: N completions.
        advantages: (N,) advantages, or (N, C) of each token.
        ref_logps: (N, C) log-probabilities of the reference model, or None without a KL term.
        groups: Groups of this step.
        old_logps: (N, C) log-probabilities of the policy at the start of the round; None takes the policy's own, which
            are the same in a round of a single step.
        uncertain: (N, C) bool, True at the tokens that enter the policy loss; None if all do.
        num_completions: Completions of the step, the mean over ranks.
        num_tokens: Tokens by which the loss of the step is normalized, the mean over ranks.
        num_entropy_tokens: Tokens over which the entropy bonus is averaged, the mean over ranks.
    """

    rollout: Rollout
    advantages: Tensor
    ref_logps: Tensor | None
    groups: list[int]
    old_logps: Tensor | None = None
    uncertain: Tensor | None = None
    num_completions: float = 1.0
    num_tokens: float = 1.0
    num_entropy_tokens: float = 1.0

    def num_groups(self, group_size: int) -> int:
        """Number of groups of the round, on this rank."""
        return len(self.rollout.texts) // group_size

    def num_loss_tokens(
        self, group_size: int, num_minibatches: int, loss_type: LossType, mask_truncated: bool
    ) -> float:
        """Tokens by which the step is normalized: its own, or for `dapo` and `cispo` its share of the round's."""
        tokens = self.rollout.completion_mask.sum(1) * self.rollout.counted(mask_truncated)  # (N,)
        if loss_type in ("dapo", "cispo"):
            return float(tokens.sum()) / num_minibatches
        return float(tokens.view(-1, group_size)[self.groups].sum())

    def num_uncertain_tokens(self, group_size: int, mask_truncated: bool) -> float:
        """Tokens of the step on this rank that enter the policy loss."""
        mask = self.rollout.completion_mask if self.uncertain is None else self.uncertain
        tokens = mask.sum(1) * self.rollout.counted(mask_truncated)  # (N,)
        return float(tokens.view(-1, group_size)[self.groups].sum())


@dataclasses.dataclass
class MicroBatch:
    """Whole groups of a round that pass through the policy together: g groups, n = g * G completions.

    Args:
        groups: (g,) int64 groups of the round, which are rows of its prompts.
        rows: (n,) int64 their completions, rows of the round.
        completion_ids: (n, c) int64, as wide as the longest completion.
        mask: (n, c) bool, True at tokens.
        weight: 1.0, or 0.0 for a dummy that only keeps ranks with sharded layers in step.
    """

    groups: Tensor
    rows: Tensor
    completion_ids: Tensor
    mask: Tensor
    weight: float = 1.0

    @staticmethod
    def of(rollout: Rollout, groups: Sequence[int], group_size: int, weight: float = 1.0) -> MicroBatch:
        """Micro-batch of some groups of a rollout, on its device."""
        index = torch.tensor(groups, device=rollout.completion_ids.device)
        rows = group_rows(index, group_size)
        mask = rollout.completion_mask[rows]
        longest = int(mask.sum(1).max())
        return MicroBatch(index, rows, rollout.completion_ids[rows, :longest], mask[:, :longest], weight)

    def take(self, values: Tensor) -> Tensor:
        """Part of the values of a round: (N,) -> (n,), (N, C) -> (n, c)."""
        part = values[self.rows]
        return part[:, : self.mask.shape[1]] if part.ndim > 1 else part


def check_round(num_groups: int, num_minibatches: int) -> None:
    """Check that a round has a study for each of its optimizer steps.

    Raises:
        UserError: If it has fewer.
    """
    if num_minibatches > num_groups:
        raise UserError(
            f"Expected at least as many studies in a round as model.init_args.num_minibatches ({num_minibatches}), "
            f"but got {num_groups}: raise data.init_args.batch_size if there are more, or lower num_minibatches."
        )


def minibatches(num_groups: int, num_minibatches: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Groups of each optimizer step, as even as possible, in random order if there is a generator.

    Raises:
        UserError: If there are fewer groups than steps.
    """
    check_round(num_groups, num_minibatches)
    order = list(range(num_groups)) if generator is None else torch.randperm(num_groups, generator=generator).tolist()
    bounds = [num_groups * i // num_minibatches for i in range(num_minibatches + 1)]
    return [order[start:stop] for start, stop in pairwise(bounds)]


def micro_batches(groups: Sequence[int], num_tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Cut groups into micro-batches of at most `budget` tokens; a group is never cut, so a large one may exceed it.

    Args:
        groups: Groups in order.
        num_tokens: Tokens of every group of the round: its prompt and all of its completions.
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
