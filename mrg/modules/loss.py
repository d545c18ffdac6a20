"""The GRPO loss and its KL term: pure functions of log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Unbiased, non-negative estimate of KL(policy || reference) per token (Schulman, 2020).

    `exp(ref - lp) - (ref - lp) - 1`.
    """
    gap = ref_logps - logps
    return gap.exp() - gap - 1


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    num_completions: int,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.04,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate plus KL, the mean over completions of the mean over tokens (Shao et al., 2024, eq. 3).

    Dividing by the number of completions of the whole round, not of this call, makes the sum over micro-batches equal
    to the loss of the round, however it is split.

    Args:
        logps: (N, C) of the policy, with gradient.
        old_logps: (N, C) of the policy that sampled.
        ref_logps: (N, C) of the reference, or `None` where `kl_coef` is 0.
        advantages: (N,).
        mask: (N, C) bool, True at real completion tokens.
        num_completions: Completions in the whole round.
        clip_low: The ratio is clipped below at 1 - clip_low.
        clip_high: The ratio is clipped above at 1 + clip_high.
        kl_coef: Weight of the KL term.

    Returns:
        The scalar loss, and detached sums over completions: `kl`, `clipped`, `entropy_proxy` (minus the mean logp).
    """
    tokens = mask.sum(1).clamp(min=1)
    # Masked positions must not produce inf * 0: their log-ratio is set to 0 before the exponential.
    ratio = torch.where(mask, logps - old_logps, 0.0).exp()
    advantage = advantages[:, None].to(logps.dtype)
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = -torch.minimum(ratio * advantage, clipped_ratio * advantage)
    stats: dict[str, Tensor] = {}
    if kl_coef:
        if ref_logps is None:
            raise ValueError("Expected argument `ref_logps` to be given where `kl_coef` is not 0, but got None.")
        kl = kl_k3(torch.where(mask, logps, 0.0), torch.where(mask, ref_logps, 0.0))
        per_token = per_token + kl_coef * kl
        stats["kl"] = ((kl * mask).sum(1) / tokens).sum().detach()
    loss = ((per_token * mask).sum(1) / tokens).sum() / num_completions
    worse = (ratio * advantage > clipped_ratio * advantage) & mask
    stats["clipped"] = (worse.sum(1) / tokens).sum().detach()
    stats["entropy_proxy"] = -(((torch.where(mask, logps, 0.0)).sum(1)) / tokens).sum().detach()
    return loss, stats
