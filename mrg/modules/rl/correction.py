"""Weights that make up for a sampler that is not quite the policy: another engine, precision or a round's age.

With p the policy's probability of a sampled token at the round's start and q the sampler's, a token's loss is weighted
by w = p / q, limited in one of two ways:

| `correction` | weight | source |
|---|---|---|
| `truncate` | min(w, limit) | Yao et al., "Your efficient RL framework secretly brings you off-policy RL", 2025 |
| `mask` | w where 1 / limit <= w <= limit, else 0 | Ling Team, IcePop in "Every step evolves", 2025 |
| `none` | 1 | |
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrg.errors import UserError

CORRECTIONS = ("truncate", "mask", "none")


def check_correction(correction: str, limit: float) -> None:
    """Raise a ValueError where `correction_weights` would.

    Args:
        correction: One of `CORRECTIONS`.
        limit: Above 1.
    """
    if correction not in CORRECTIONS:
        raise UserError(f"Expected `correction` to be one of {', '.join(CORRECTIONS)}, but got {correction!r}.")
    if not limit > 1:
        raise UserError(f"Expected `ratio_limit` to be above 1, but got {limit}.")


def correction_weights(
    logps: Tensor, sampled_logps: Tensor, mask: Tensor, correction: str = "truncate", limit: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Weight of each token's loss, without gradient.

    Args:
        logps: (N, C) of the policy at the round's start.
        sampled_logps: (N, C) of the sampler.
        mask: (N, C) bool; anything may stand elsewhere.
        correction: See the table above.
        limit: Above 1.

    Returns:
        Weights (N, C), 1 where the mask is False; and (N, C), 1.0 at the tokens whose ratio was beyond the limit.
    """
    check_correction(correction, limit)
    ratio = (logps.detach() - sampled_logps).where(mask, 0.0).exp()
    beyond = (ratio > limit) | (ratio < 1 / limit) if correction == "mask" else ratio > limit
    if correction == "none":
        return torch.ones_like(ratio), torch.zeros_like(ratio)
    weights = ratio.masked_fill(beyond, 0.0) if correction == "mask" else ratio.clamp(max=limit)
    return weights, beyond.to(ratio.dtype)
