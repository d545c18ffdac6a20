"""Group advantages: pure functions of rewards."""

from __future__ import annotations

import torch
from torch import Tensor


def dead_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Which groups carry no signal: all rewards exactly equal.

    Args:
        rewards: (N,), row n belongs to study n // group_size.
        group_size: Completions per study.

    Returns:
        (N // group_size,) bool.
    """
    groups = rewards.view(-1, group_size)
    return groups.amax(1) == groups.amin(1)


def group_advantages(rewards: Tensor, group_size: int, scale: str = "group", eps: float = 1e-4) -> Tensor:
    """Advantage of each completion over its group (Shao et al., DeepSeekMath, 2024).

    `(R - mean) / (std + eps)` with Bessel's correction for `scale="group"`; the standard deviation of the whole batch
    for `"batch"`; no division for `"none"` (Liu et al., Dr. GRPO, 2025). A dead group gets exactly 0: the residue of a
    floating-point mean divided by a tiny deviation would otherwise be an advantage of thousands.

    Args:
        rewards: (N,), row n belongs to study n // group_size.
        group_size: Completions per study, at least 2.
        scale: `"group"`, `"batch"` or `"none"`.
        eps: Added to the deviation.

    Returns:
        (N,) float64, summing to 0 in each group.
    """
    if group_size < 2:
        raise ValueError(
            f"Expected argument `group_size` to be at least 2, but got {group_size}: a group is its own baseline."
        )
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"Expected argument `scale` to be 'group', 'batch' or 'none', but got {scale!r}.")
    groups = rewards.double().view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        centred = centred / (groups.std(1, keepdim=True) + eps)
    elif scale == "batch":
        centred = centred / (groups.std() + eps)
    dead = dead_groups(rewards, group_size)
    return torch.where(dead[:, None], torch.zeros_like(centred), centred).flatten()
