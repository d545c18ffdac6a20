"""The GRPO losses: pure functions of log-probabilities.

With r = exp(logp - old_logp) of a token, A the advantage of its completion and L that completion's tokens; N the
completions and T the tokens behind one optimiser step, over all micro-batches and all ranks:

| `loss_type` | of a token | weight of a token | source |
|---|---|---|---|
| `grpo` | -min(r A, clip(r) A) | 1 / (N L): a mean of means | Shao et al., DeepSeekMath, 2024 |
| `bnpo` | the same | 1 / T | von Werra et al., TRL, 2020 |
| `dapo` | the same | 1 / T | Yu et al., DAPO, 2025 |
| `dr_grpo` | the same | 1 / (N max_tokens), a constant | Liu et al., Dr. GRPO, 2025 |
| `gspo` | the same, r the geometric mean over the completion | 1 / (N L) | Zheng et al., GSPO, 2025 |
| `cispo` | -sg(clip(r)) A logp, sg: no gradient | 1 / T | MiniMax, MiniMax-M1, 2025 |

clip(r) limits r to [1 - clip_low, 1 + clip_high]. `kl_coef` times the KL of `mrg.modules.rl.kl` is added to each token.

Choices. Nothing is normalised by what one call happens to see, so the loss does not depend on how a step is split; in
TRL `bnpo` does, which is all that tells it from `dapo` there. Here the two differ in what the caller counts as T where
a round makes several steps: `bnpo` the step's own tokens, `dapo` and `cispo` the round's tokens divided by its steps
(as TRL); in a round of one step they are one loss. GSPO wants clips of about 3e-4. CISPO clips on both sides as in
the paper's equation; the paper's runs, and TRL, have no lower bound: `clip_low=1`. TRL's `epsilon_high` is, for this
loss only, the bound itself: 1 + clip_high. The KL correction takes the token's ratio in `gspo` too; TRL takes the
sequence's there, with which the gradient is biased.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.modules.rl.kl import KLEstimator, kl_estimate

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo"]
LOSS_TYPES: tuple[LossType, ...] = get_args(LossType)


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    num_completions: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.04,
    *,
    loss_type: LossType = "grpo",
    num_tokens: float | None = None,
    max_tokens: int | None = None,
    dual_clip: float | None = None,
    kl_estimator: KLEstimator = "k3",
    kl_ratio_correction: bool = False,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Share of N completions in the loss of an optimiser step; formulas and sources in the table above.

    Shares add up, over micro-batches and ranks; where gradients are averaged over ranks, multiply by their number.

    Args:
        logps: (N, C) of the policy, with gradient.
        old_logps: (N, C) of the policy that sampled.
        ref_logps: (N, C) of the reference, or `None` where `kl_coef` is 0.
        advantages: (N,).
        mask: (N, C) bool, True at tokens that count; anything may stand elsewhere, and a row may be empty.
        num_completions: Completions of the whole step, on all ranks.
        clip_low: The ratio is clipped below at 1 - clip_low.
        clip_high: The ratio is clipped above at 1 + clip_high.
        kl_coef: Weight of the KL term.
        loss_type: See the table above.
        num_tokens: Tokens of the whole step, on all ranks; needed by `bnpo`, `dapo` and `cispo`.
        max_tokens: Length limit of a completion; needed by `dr_grpo`.
        dual_clip: See `clipped_surrogate`.
        kl_estimator: See `kl_estimate`.
        kl_ratio_correction: Multiply the KL term by the token's unclipped ratio, see `mrg.modules.rl.kl`.
        weights: (N, C) of the tokens' surrogates, but not of their KL, see `mrg.modules.rl.correction`.

    Returns:
        The scalar share; detached sums over completions of token means: `kl`, `entropy_proxy` (-logp), and `_clipped`.
    """
    check_loss_options(loss_type, clip_low, clip_high, dual_clip, kl_estimator)
    # What stands at masked positions, even inf or nan, must not meet a product with 0 or send a gradient.
    logps, old_logps = logps.where(mask, 0.0), old_logps.detach().where(mask, 0.0)
    token_ratio = (logps - old_logps).exp()
    ratio = sequence_ratio(logps, old_logps, mask) if loss_type == "gspo" else token_ratio
    advantages = advantages[:, None].to(logps.dtype)
    if loss_type == "cispo":
        per_token = cispo_surrogate(logps, ratio, advantages, clip_low, clip_high)
    else:
        per_token = clipped_surrogate(ratio, advantages, clip_low, clip_high, dual_clip)
    if weights is not None:
        per_token = per_token * weights.where(mask, 0.0)
    stats = _clipped(ratio, advantages, clip_low, clip_high, dual_clip, loss_type) | {"entropy_proxy": -logps}
    if kl_coef:
        stats["kl"] = _kl_term(logps, ref_logps, mask, kl_estimator, token_ratio if kl_ratio_correction else None)
        per_token = per_token + kl_coef * stats["kl"]
    loss = aggregate(per_token, mask, loss_type, num_completions, num_tokens, max_tokens)
    return loss, {name: _sum_of_means(value, mask) for name, value in stats.items()}


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """`-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)` (Schulman et al., PPO, 2017).

    Where A < 0 this grows with r without bound; `dual_clip` = c limits it to -c A (Ye et al., "Mastering complex
    control in MOBA games", 2020): `-max(min(r A, clip(r) A), c A)`. With c at least 1 + clip_high that is the same as
    limiting r to c in the first product, which is what TRL calls `delta`.
    """
    limited = ratio if dual_clip is None else ratio.clamp(max=dual_clip)
    return -torch.minimum(limited * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def cispo_surrogate(logps: Tensor, ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """`-sg(clip(r, 1 - clip_low, 1 + clip_high)) A logp`: every token keeps a gradient (MiniMax, MiniMax-M1, 2025)."""
    return -ratio.detach().clamp(1 - clip_low, 1 + clip_high) * advantages * logps


def sequence_ratio(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """`(pi(o) / pi_old(o)) ^ (1 / L)`, (N, 1): the geometric mean of token ratios (Zheng et al., GSPO, 2025)."""
    gap = (logps - old_logps).where(mask, 0.0)
    return (gap.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()


def aggregate(
    per_token: Tensor,
    mask: Tensor,
    loss_type: LossType,
    num_completions: float,
    num_tokens: float | None = None,
    max_tokens: int | None = None,
) -> Tensor:
    """Weighted sum over tokens, with the weights of the table above.

    Args:
        per_token: (N, C), or (N, 1) where all tokens of a completion have one value.
        mask: (N, C) bool.
        loss_type: See the table above.
        num_completions: See `grpo_loss`.
        num_tokens: See `grpo_loss`.
        max_tokens: See `grpo_loss`.
    """
    if num_completions <= 0:
        raise UserError(f"Expected argument `num_completions` to be above 0, but got {num_completions}.")
    sums = per_token.where(mask, 0.0).sum(1)  # (N,)
    if loss_type in ("grpo", "gspo"):
        return (sums / mask.sum(1).clamp(min=1)).sum() / num_completions
    if loss_type == "dr_grpo":
        if max_tokens is None or max_tokens < 1:
            raise UserError(f"Expected argument `max_tokens` to be at least 1 for 'dr_grpo', but got {max_tokens}.")
        return sums.sum() / (num_completions * max_tokens)
    if num_tokens is None or num_tokens < 0:
        raise UserError(f"Expected argument `num_tokens` to be at least 0 for {loss_type!r}, but got {num_tokens}.")
    return sums.sum() / max(num_tokens, 1)  # all completions of a step may be truncated and masked


def check_loss_options(
    loss_type: LossType = "grpo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    kl_estimator: KLEstimator = "k3",
    where: str = "",
) -> None:
    """Check the options of `grpo_loss`.

    Args:
        loss_type: See `grpo_loss`.
        clip_low: See `grpo_loss`.
        clip_high: See `grpo_loss`.
        dual_clip: See `grpo_loss`.
        kl_estimator: See `grpo_loss`.
        where: Prefix of the settings' names in messages; without one they are called arguments.

    Raises:
        UserError: If one is out of range.
    """

    def expected(name: str) -> str:
        return f"Expected {where}{name}" if where else f"Expected argument `{name}`"

    if loss_type not in LOSS_TYPES:
        name = expected("type" if where else "loss_type")
        raise UserError(f"{name} to be one of {', '.join(LOSS_TYPES)}, but got {loss_type!r}.")
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not value >= 0:
            raise UserError(f"{expected(name)} to be at least 0, but got {value}.")
    if dual_clip is not None and loss_type == "cispo":
        raise UserError(f"{expected('dual_clip')} to be None for 'cispo', but got {dual_clip}.")
    if dual_clip is not None and not dual_clip >= 1 + clip_high:
        raise UserError(
            f"{expected('dual_clip')} to be at least 1 + clip_high = {1 + clip_high:g}, but got {dual_clip}."
        )
    if kl_estimator not in get_args(KLEstimator):
        raise UserError(f"{expected('kl_estimator')} to be 'k1', 'k2' or 'k3', but got {kl_estimator!r}.")


def _kl_term(
    logps: Tensor, ref_logps: Tensor | None, mask: Tensor, estimator: KLEstimator, token_ratio: Tensor | None
) -> Tensor:
    """(N, C) of the KL, times the ratio if there is one."""
    if ref_logps is None:
        raise UserError("Expected argument `ref_logps` to be given where `kl_coef` is not 0, but got None.")
    kl = kl_estimate(logps, ref_logps.detach().where(mask, 0.0), estimator)
    return kl if token_ratio is None else kl * token_ratio


def _clipped(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None, loss_type: LossType
) -> dict[str, Tensor]:
    """1 at the tokens that are `clipped_low`, `clipped_high` or, by a dual clip, `clipped_dual`; `clipped` is any.

    A clipped token loses its gradient; in CISPO, only its weight is changed.
    """
    low, high = ratio < 1 - clip_low, ratio > 1 + clip_high
    if loss_type != "cispo":
        low, high = low & (advantages < 0), high & (advantages > 0)
    masks = {"clipped_low": low, "clipped_high": high}
    if dual_clip is not None:
        masks["clipped_dual"] = (ratio > dual_clip) & (advantages < 0)
    masks["clipped"] = torch.stack(list(masks.values())).any(0)
    return {name: value.to(ratio.dtype) for name, value in masks.items()}


def _sum_of_means(per_token: Tensor, mask: Tensor) -> Tensor:
    """Sum over completions of the mean over tokens, without gradient; an empty row counts 0."""
    return (per_token.detach().where(mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).sum()
