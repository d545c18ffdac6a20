"""Rewards -> advantages: pure functions.

A missing reward (one that does not apply to a completion) is marked in a bool tensor `present`, never by nan: nan means
that a reward failed, and is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from mrg.errors import UserError

Scale = Literal["group", "batch", "none"]


def combine_rewards(
    parts: Mapping[str, Tensor], weights: Mapping[str, float], present: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the parts of a reward, `sum_k w_k r_k` over the parts that are present.

    Weights are not rescaled if a part is missing, as in TRL (`nansum`): a part should be missing for a whole group or
    not at all, because compared with completions that have it, a missing part counts as 0.

    Args:
        parts: Name -> (N,) scores.
        weights: Name -> weight.
        present: Name -> (N,) bool for parts that may be missing; `parts` is ignored where it is False.

    Returns:
        (N,) float64, 0 if all parts are missing, and (N,) bool, True if a part with a weight other than 0 is present.

    Raises:
        UserError: If the names differ.
    """
    present = present or {}
    if not parts or set(parts) != set(weights) or not set(present) <= set(parts):
        raise UserError(
            f"Expected arguments `weights` and `present` to name parts of {sorted(parts)}, "
            f"but got {sorted(weights)} and {sorted(present)}."
        )
    first = next(iter(parts.values()))
    rewards = torch.zeros_like(first, dtype=torch.float64)
    scored = torch.zeros_like(first, dtype=torch.bool)
    for name, part in parts.items():
        here = present.get(name, torch.ones_like(scored))
        rewards = rewards + weights[name] * part.double().where(here, 0.0)
        if weights[name]:
            scored = scored | here
    return rewards, scored


def num_missing(present: Tensor | None) -> int:
    """Number of completions without any reward; None if all have one."""
    return 0 if present is None else int((~present).sum())


def dead_groups(rewards: Tensor, group_size: int, present: Tensor | None = None) -> Tensor:
    """Groups without a signal: all rewards are exactly equal, or there are fewer than two.

    Args:
        rewards: (N,) rewards; row n belongs to study n // group_size.
        group_size: Completions per study.
        present: (N,) bool, True where a reward exists; None if all exist.

    Returns:
        (N // group_size,) bool.
    """
    _, here = _groups(rewards, group_size, present)
    return equal_groups(rewards, group_size, present) | (here.sum(1) < 2)


def equal_groups(rewards: Tensor, group_size: int, present: Tensor | None = None) -> Tensor:
    """Groups with at least two rewards, all of them exactly equal; see `dead_groups`."""
    groups, here = _groups(rewards, group_size, present)
    equal = groups.where(here, -torch.inf).amax(1) == groups.where(here, torch.inf).amin(1)
    return equal & (here.sum(1) >= 2)


def group_advantages(
    rewards: Tensor,
    group_size: int,
    scale: Scale = "group",
    eps: float = 1e-4,
    present: Tensor | None = None,
    deviation: float | None = None,
) -> Tensor:
    """Advantage of each completion over its group (Shao et al., DeepSeekMath, 2024).

    `(R - mean) / (std + eps)` with Bessel's correction for `scale="group"`; the standard deviation of the whole batch
    for `"batch"` (Liu et al., "Tricks or traps?", 2025); no division for `"none"` (Liu et al., Dr. GRPO, 2025). A dead
    group gets exactly 0: otherwise the residue of a floating-point mean, divided by a tiny deviation, would be an
    advantage of thousands. Missing rewards do not enter mean and deviation, and their advantage is exactly 0.

    Args:
        rewards: (N,) rewards; row n belongs to study n // group_size.
        group_size: Completions per study, at least 2.
        scale: `"group"`, `"batch"` or `"none"`.
        eps: Number added to the deviation.
        present: (N,) bool, True where a reward exists; None if all exist.
        deviation: Standard deviation of the rewards of all ranks, for `"batch"`; by default that of `rewards`.

    Returns:
        (N,) float64, summing to 0 in each group.

    Raises:
        UserError: If an argument is out of range, or a reward is not finite.
    """
    if group_size < 2:
        raise UserError(
            f"Expected argument `group_size` to be at least 2, but got {group_size}: a group is its own baseline."
        )
    if scale not in get_args(Scale):
        raise UserError(f"Expected argument `scale` to be 'group', 'batch' or 'none', but got {scale!r}.")
    groups, here = _groups(rewards, group_size, present)
    broken = here & ~groups.isfinite()
    if bool(broken.any()):
        row = int(broken.flatten().nonzero()[0])
        raise UserError(f"Expected argument `rewards` to be finite, but got {float(rewards[row])} in row {row}.")
    values = groups.double().where(here, 0.0)
    centred = (values - values.sum(1, keepdim=True) / here.sum(1, keepdim=True).clamp(min=1)).where(here, 0.0)
    if scale == "group":
        variance = centred.square().sum(1, keepdim=True) / (here.sum(1, keepdim=True) - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + eps)
    elif scale == "batch" and deviation is not None:
        centred = centred / (deviation + eps)
    elif scale == "batch" and int(here.sum()) > 1:
        centred = centred / (values[here].std() + eps)
    return centred.where(~dead_groups(rewards, group_size, present)[:, None], 0.0).flatten()


def _groups(rewards: Tensor, group_size: int, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rewards and presence, (groups, group_size) each."""
    if rewards.numel() % group_size:
        raise UserError(f"Expected argument `rewards` to hold groups of {group_size}, but got {rewards.numel()} rows.")
    here = torch.ones_like(rewards, dtype=torch.bool) if present is None else present
    return rewards.reshape(-1, group_size), here.reshape(-1, group_size)
