"""Weights of tokens that another policy sampled: pure functions of log-probabilities.

**Sampler correction.** Another engine, another precision or an older adapter samples from a distribution q that is not
quite the policy p at the start of the round. The loss of a token is weighted by w = p / q, or by W, the product of w
over the tokens of its completion, limited in one of these ways:

| `correction` | weight | source |
|---|---|---|
| `truncate` | min(w, limit) | Yao et al., "Your efficient RL framework secretly brings you off-policy RL", 2025 |
| `mask` | w where 1 / limit <= w <= limit, else 0 | Ling Team, IcePop in "Every step evolves", 2025 |
| `sequence_mask` | W where 1 / limit <= W <= limit, else 0 | Liu et al., "When speed kills stability", 2025 |
| `none` | 1 | |

**Off-policy sequence mask** (DeepSeek, DeepSeek-V3.2, 2025). A completion with a negative advantage that the policy has
become much less likely to write has nothing more to teach: it is left out where the mean over its tokens of
log(q) - log(pi), pi the policy of this step, exceeds `off_policy_limit`.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mrg.errors import UserError

Correction = Literal["truncate", "mask", "none", "sequence_mask"]


def check_correction(correction: Correction, limit: float, where: str = "") -> None:
    """Check the options of `correction_weights`.

    Args:
        correction: Row of the table above.
        limit: Limit of the ratio, above 1.
        where: Prefix of the settings' names in messages.

    Raises:
        UserError: If one is out of range.
    """
    if correction not in get_args(Correction):
        choices = ", ".join(get_args(Correction))
        raise UserError(f"Expected `{where}correction` to be one of {choices}, but got {correction!r}.")
    if not limit > 1:
        raise UserError(f"Expected `{where}ratio_limit` to be above 1, but got {limit}.")


def correction_weights(
    logps: Tensor, sampled_logps: Tensor, mask: Tensor, correction: Correction = "truncate", limit: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Weight of each token's loss for tokens of another sampler, without gradient.

    Args:
        logps: (N, C) log-probabilities of the policy at the start of the round.
        sampled_logps: (N, C) log-probabilities of the sampler.
        mask: (N, C) bool, True at tokens; values elsewhere are ignored.
        correction: Row of the table above.
        limit: Limit of the ratio, above 1.

    Returns:
        (N, C) weights, those where the mask is False without meaning; and (N, C) floats, 1.0 at tokens whose ratio is
        beyond the limit.

    Raises:
        UserError: If the correction is unknown or the limit is out of range.
    """
    check_correction(correction, limit)
    gap = (logps.detach() - sampled_logps).where(mask, 0.0)  # (N, C)
    ratio = (gap.sum(1, keepdim=True).expand_as(gap) if correction == "sequence_mask" else gap).exp()
    if correction == "none":
        return torch.ones_like(ratio), torch.zeros_like(ratio)
    if correction == "truncate":
        return ratio.clamp(max=limit), (ratio > limit).to(ratio.dtype)
    beyond = ((ratio > limit) | (ratio < 1 / limit)) & mask
    return ratio.masked_fill(beyond, 0.0), beyond.to(ratio.dtype)


def token_weights(
    correction: tuple[Correction, float] | None,
    off_policy_limit: float | None,
    logps: Tensor,
    old_logps: Tensor,
    sampled_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Weights of the policy loss of n completions, and sums over them.

    Args:
        correction: Row of the table above and its limit; None if the policy samples itself.
        off_policy_limit: Limit of the off-policy sequence mask; None for no mask.
        logps: (n, c) log-probabilities of the policy of this step.
        old_logps: (n, c) log-probabilities of the policy at the start of the round.
        sampled_logps: (n, c) log-probabilities of the sampler.
        advantages: (n,) or (n, c) advantages.
        mask: (n, c) bool, True at tokens.

    Returns:
        (n, c) weights, or None if all are 1; sums over completions of the shares of tokens beyond the limit of the
        correction (`corrected`), and of completions that are left out (`off_policy`).
    """
    weights, sums = None, {}
    if correction is not None:
        weights, beyond = correction_weights(old_logps, sampled_logps, mask, *correction)
        sums["corrected"] = (beyond.where(mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).sum()
    if off_policy_limit is not None:
        kept = off_policy_mask(logps, sampled_logps, advantages, mask, off_policy_limit)
        weights = kept.expand_as(logps) if weights is None else weights * kept
        sums["off_policy"] = (1 - kept).sum()
    return weights, sums


def off_policy_mask(logps: Tensor, sampled_logps: Tensor, advantages: Tensor, mask: Tensor, limit: float) -> Tensor:
    """(N, 1) floats: 0.0 for completions that are left out, see above, 1.0 for all others.

    Args:
        logps: (N, C) log-probabilities of the policy of this step.
        sampled_logps: (N, C) log-probabilities of the sampler.
        advantages: (N,) advantages, or (N, C) of tokens, whose sum then counts.
        mask: (N, C) bool, True at tokens.
        limit: Limit in nats per token.
    """
    gap = (sampled_logps - logps.detach()).where(mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)  # (N,)
    whole = advantages if advantages.ndim == 1 else advantages.where(mask, 0.0).sum(1)
    return ((whole >= 0) | (gap <= limit)).to(logps.dtype)[:, None]
