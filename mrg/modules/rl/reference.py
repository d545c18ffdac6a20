"""The reference report as a member of groups from which nothing can be learned.

A group in which no completion is better than another has no gradient, and if all of them are bad, more sampling seldom
helps. The reference report then takes the place of the group's first completion (after Yan et al., LUFFY, 2025, and
EditGRPO, 2025): it is rewarded like the others, its probability is that of the policy at the start of the round, so
that its ratio is 1 and clipped like the others, and its advantage pulls towards it, away from what was sampled.

A group is changed only if the reference is paid more than it; one that does not end within the largest number of tokens
is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.modules.rollout.sampling import Rollout


def bad_groups(signal: Tensor, own: Tensor, group_size: int, dead: Tensor) -> list[int]:
    """Dead groups whose reference is paid more than they are.

    Args:
        signal: (N,) rewards of the completions; row n belongs to study n // group_size.
        own: (B,) rewards of the references.
        group_size: Completions per study.
        dead: (B,) bool, True for groups of equal rewards.
    """
    highest = signal.view(-1, group_size).amax(1)
    found: list[int] = (dead & (own > highest)).nonzero()[:, 0].tolist()
    return found


def with_references(
    rollout: Rollout,
    groups: Sequence[int],
    ids: Sequence[Sequence[int]],
    texts: Sequence[str],
    group_size: int,
    pad_id: int,
) -> Rollout:
    """Put references in the place of the first completions of groups.

    Args:
        rollout: N completions.
        groups: k groups.
        ids: k lists of token ids, each with its end token.
        texts: k texts.
        group_size: Completions per study.
        pad_id: Token id of padding.

    Returns:
        A rollout in which the log-probabilities of the references are 0, to be filled in.
    """
    width = max(rollout.completion_ids.shape[1], *map(len, ids))
    extra = (0, width - rollout.completion_ids.shape[1])
    found = Rollout(
        F.pad(rollout.completion_ids, extra, value=pad_id),
        F.pad(rollout.completion_mask, extra, value=False),
        F.pad(rollout.old_logps, extra, value=0.0),
        list(rollout.texts),
        rollout.truncated.clone(),
    )
    for group, tokens, text in zip(groups, ids, texts, strict=True):
        row = group * group_size
        found.completion_ids[row] = pad_id
        found.completion_ids[row, : len(tokens)] = torch.tensor(tokens)
        found.completion_mask[row] = torch.arange(width) < len(tokens)
        found.old_logps[row], found.texts[row], found.truncated[row] = 0.0, text, False
    return found
