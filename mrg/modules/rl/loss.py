"""The GRPO losses and their KL term: pure functions of log-probabilities.

**Policy loss.** With r = exp(logp - old_logp) of a token, A the advantage of its completion and L the completion's
tokens; N the completions and T the tokens of one optimizer step, over all micro-batches and all ranks:

| `loss_type` | loss of a token | weight of a token | source |
|---|---|---|---|
| `grpo` | -min(r A, clip(r) A) | 1 / (N L): a mean of means | Shao et al., DeepSeekMath, 2024 |
| `bnpo` | the same | 1 / T | von Werra et al., TRL, 2020 |
| `dapo` | the same | 1 / T | Yu et al., DAPO, 2025 |
| `dr_grpo` | the same | 1 / (N max_tokens), a constant | Liu et al., Dr. GRPO, 2025 |
| `gspo` | the same, r the geometric mean over the completion | 1 / (N L) | Zheng et al., GSPO, 2025 |
| `cispo` | -sg(clip(r)) A logp, sg: no gradient | 1 / T | MiniMax, MiniMax-M1, 2025 |
| `sapo` | -A (4 / t) sigmoid(t (r - 1)), t by the sign of A | 1 / (N L) | Gao et al., SAPO, 2025 |

clip(r) limits r to [1 - clip_low, 1 + clip_high]. `kl_coef` times the KL term is added to each token.

Choices: nothing is normalized by what a single call happens to see, so the loss does not depend on how a step is split;
in TRL `bnpo` does, which is its only difference from `dapo` there. Here the two differ in what the caller counts as T
when a round makes several steps: `bnpo` the tokens of the step, `dapo` and `cispo` the tokens of the round divided by
its steps (as TRL); in a round of one step they are the same loss. GSPO needs clips of about 3e-4. CISPO clips on both
sides as in the paper's equation; the paper's runs, and TRL, have no lower bound: `clip_low=1`. For this loss only,
TRL's `epsilon_high` is the bound itself: 1 + clip_high. SAPO replaces the clip by a sigmoid whose slope is 1 at r = 1;
its temperature t is 1 where A > 0 and 1.05 elsewhere, so that unlikely tokens are pushed down more carefully. The KL
correction uses the token's ratio in `gspo` too; TRL uses the sequence's, with which the gradient is biased.

**KL term.** With lp the logp of a token sampled from the policy and ref the reference model's (Schulman, "Approximating
KL divergence", 2020), and KL short for KL(policy, reference):

| `kl_estimator` | formula | expected value | expected gradient as a loss | the same, times the ratio |
|---|---|---|---|---|
| `k1` | lp - ref | KL | 0: it regularizes nothing | that of KL |
| `k2` | (lp - ref)^2 / 2 | biased | that of KL | biased |
| `k3` | exp(ref - lp) - (ref - lp) - 1 | KL | that of KL(reference, policy) | that of KL |

An unbiased value need not have an unbiased gradient, because the sampling distribution depends on the policy too (Tang
and Munos, "On a few pitfalls in KL divergence gradient estimation for RL", 2025). Multiplying by the token's ratio
policy / old policy, with its gradient, restores that dependence and corrects for tokens of an older policy (DeepSeek,
DeepSeek-V3.2, 2025). All of this holds for a token given the tokens before it; the effect of a token on the KL of later
tokens is left out.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mrg.errors import UserError

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"]
LOSS_TYPES: tuple[LossType, ...] = get_args(LossType)
KLEstimator = Literal["k1", "k2", "k3"]


def grpo_loss(
    logps: Tensor, old_logps: Tensor, ref_logps: Tensor | None, advantages: Tensor, mask: Tensor,
    num_completions: float, clip_low: float = 0.2, clip_high: float = 0.2, kl_coef: float = 0.04, *,
    loss_type: LossType = "grpo", num_tokens: float | None = None, max_tokens: int | None = None,
    dual_clip: float | None = None, kl_estimator: KLEstimator = "k3", kl_ratio_correction: bool = False,
    weights: Tensor | None = None, sapo_temperature_pos: float = 1.0, sapo_temperature_neg: float = 1.05,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Share of N completions in the loss of an optimizer step; formulas and sources in the tables above.

    Shares add up over micro-batches and ranks; if gradients are averaged over ranks, multiply by their number.

    Args:
        logps: (N, C) log-probabilities of the policy, with gradient.
        old_logps: (N, C) log-probabilities of the policy that sampled.
        ref_logps: (N, C) log-probabilities of the reference model, or None if `kl_coef` is 0.
        advantages: (N,) advantages of the completions, or (N, C) of their tokens.
        mask: (N, C) bool, True at tokens that count; values elsewhere are ignored, and a row may be empty.
        num_completions: Completions of the whole step, on all ranks.
        clip_low: The ratio is clipped below at 1 - clip_low.
        clip_high: The ratio is clipped above at 1 + clip_high.
        kl_coef: Weight of the KL term.
        loss_type: Row of the first table above.
        num_tokens: Tokens of the whole step, on all ranks; needed by `bnpo`, `dapo` and `cispo`.
        max_tokens: Length limit of a completion; needed by `dr_grpo`.
        dual_clip: Upper limit of the ratio where the advantage is negative, see `clipped_surrogate`.
        kl_estimator: Row of the second table above.
        kl_ratio_correction: Multiply the KL term by the token's unclipped ratio.
        weights: (N, C) factors of the policy loss, but not of the KL term, see `mrg.modules.rl.correction`.
        sapo_temperature_pos: Temperature of `sapo` where the advantage is positive.
        sapo_temperature_neg: Temperature of `sapo` elsewhere.

    Returns:
        The scalar share, and detached sums over completions of token means: `kl`, `entropy_proxy` (-logp), `clipped`,
        `clipped_low`, `clipped_high` and, with a dual clip, `clipped_dual`.

    Raises:
        UserError: If an argument is out of range or missing.
    """
    check_loss_options(loss_type, clip_low, clip_high, dual_clip, kl_estimator)
    # Masked positions may hold inf or nan: they must neither be multiplied by 0 nor receive a gradient.
    logps, old_logps = logps.where(mask, 0.0), old_logps.detach().where(mask, 0.0)
    token_ratio = (logps - old_logps).exp()
    ratio = sequence_ratio(logps, old_logps, mask) if loss_type == "gspo" else token_ratio
    advantages = (advantages if advantages.ndim > 1 else advantages[:, None]).to(logps.dtype)
    if loss_type == "cispo":
        per_token = cispo_surrogate(logps, ratio, advantages, clip_low, clip_high)
    elif loss_type == "sapo":
        per_token = sapo_surrogate(ratio, advantages, sapo_temperature_pos, sapo_temperature_neg)
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

    For A < 0 this grows with r without bound; `dual_clip` = c limits it to -c A (Ye et al., "Mastering complex control
    in MOBA games", 2020): `-max(min(r A, clip(r) A), c A)`. With c at least 1 + clip_high this equals limiting r to c
    in the first product, which TRL calls `delta`.
    """
    limited = ratio if dual_clip is None else ratio.clamp(max=dual_clip)
    return -torch.minimum(limited * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def cispo_surrogate(logps: Tensor, ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """`-sg(clip(r, 1 - clip_low, 1 + clip_high)) A logp`: every token keeps a gradient (MiniMax, MiniMax-M1, 2025)."""
    return -ratio.detach().clamp(1 - clip_low, 1 + clip_high) * advantages * logps


def sapo_surrogate(ratio: Tensor, advantages: Tensor, positive: float = 1.0, negative: float = 1.05) -> Tensor:
    """`-A (4 / t) sigmoid(t (r - 1))`, t by the sign of A: a smooth clip (Gao et al., SAPO, 2025)."""
    temperature = torch.full_like(advantages, negative).masked_fill(advantages > 0, positive)
    return -(temperature * (ratio - 1)).sigmoid() * 4 / temperature * advantages


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
        loss_type: Row of the first table above.
        num_completions: N, the completions of the step.
        num_tokens: T, the tokens of the step.
        max_tokens: Constant of `dr_grpo`.
    """
    if num_completions <= 0:
        raise UserError(f"Expected argument `num_completions` to be above 0, but got {num_completions}.")
    sums = per_token.where(mask, 0.0).sum(1)  # (N,)
    if loss_type in ("grpo", "gspo", "sapo"):
        return (sums / mask.sum(1).clamp(min=1)).sum() / num_completions
    if loss_type == "dr_grpo":
        if max_tokens is None or max_tokens < 1:
            raise UserError(f"Expected argument `max_tokens` to be at least 1 for 'dr_grpo', but got {max_tokens}.")
        return sums.sum() / (num_completions * max_tokens)
    if num_tokens is None or num_tokens < 0:
        raise UserError(f"Expected argument `num_tokens` to be at least 0 for {loss_type!r}, but got {num_tokens}.")
    return sums.sum() / max(num_tokens, 1)  # all completions of a step may be truncated and masked


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """Estimate KL(policy, reference) at each token by a formula of the second table above (Schulman, 2020).

    Args:
        logps: Log-probabilities of the policy, any shape.
        ref_logps: Log-probabilities of the reference model, the same shape.
        estimator: `"k1"`, `"k2"` or `"k3"`; only k1 can be negative.

    Returns:
        Nats per token, in the shape of `logps`.

    Raises:
        UserError: If the estimator is unknown.
    """
    if estimator not in get_args(KLEstimator):
        raise UserError(f"Expected argument `estimator` to be 'k1', 'k2' or 'k3', but got {estimator!r}.")
    gap = ref_logps - logps
    if estimator == "k1":
        return -gap
    if estimator == "k2":
        return gap.square() / 2
    return gap.exp() - gap - 1


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
        loss_type: Row of the first table above.
        clip_low: Lower clip, at least 0.
        clip_high: Upper clip, at least 0.
        dual_clip: Upper limit of the ratio where the advantage is negative, at least 1 + clip_high.
        kl_estimator: Row of the second table above.
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
    if dual_clip is not None and loss_type in ("cispo", "sapo"):
        raise UserError(f"{expected('dual_clip')} to be None for {loss_type!r}, but got {dual_clip}.")
    if dual_clip is not None and not dual_clip >= 1 + clip_high:
        raise UserError(
            f"{expected('dual_clip')} to be at least 1 + clip_high = {1 + clip_high:g}, but got {dual_clip}."
        )
    if kl_estimator not in get_args(KLEstimator):
        raise UserError(f"{expected('kl_estimator')} to be 'k1', 'k2' or 'k3', but got {kl_estimator!r}.")


def _kl_term(
    logps: Tensor, ref_logps: Tensor | None, mask: Tensor, estimator: KLEstimator, token_ratio: Tensor | None
) -> Tensor:
    """(N, C) KL estimates, times the ratio if there is one."""
    if ref_logps is None:
        raise UserError("Expected argument `ref_logps` to be given where `kl_coef` is not 0, but got None.")
    kl = kl_estimate(logps, ref_logps.detach().where(mask, 0.0), estimator)
    return kl if token_ratio is None else kl * token_ratio


def _clipped(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None, loss_type: LossType
) -> dict[str, Tensor]:
    """(N, C) indicators of the tokens that are clipped below, above, by a dual clip, or by any of these.

    A clipped token loses its gradient; in CISPO, only its weight is changed. SAPO clips none: its masks show the tokens
    beyond the clips.
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
    """Sum over completions of the mean over tokens, without gradient; an empty row counts as 0."""
    return (per_token.detach().where(mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).sum()
