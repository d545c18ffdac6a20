"""Estimates of the KL to the reference from sampled tokens: pure functions of log-probabilities.

With lp the logp of a token sampled from the policy and ref the reference's (Schulman, "Approximating KL divergence",
2020), and KL short for KL(policy, reference):

| estimator | formula | expected value | expected gradient as a loss | the same, times the ratio |
|---|---|---|---|---|
| `k1` | lp - ref | KL | 0: it regularises nothing | that of KL |
| `k2` | (lp - ref)^2 / 2 | biased | that of KL | biased |
| `k3` | exp(ref - lp) - (ref - lp) - 1 | KL | that of KL(reference, policy) | that of KL |

An unbiased value need not have an unbiased gradient, because the sampling distribution depends on the policy too (Tang
and Munos, "On a few pitfalls in KL divergence gradient estimation for RL", 2025). Multiplying by the token's ratio
policy / old policy, with its gradient, puts that dependence back and corrects for tokens of an older policy
(DeepSeek-AI, DeepSeek-V3.2, 2025). All of this holds for a token given the tokens before it; what a token does to the
KL of later ones is left out.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from mrg.errors import UserError

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """Estimate KL(policy, reference) at each token by a formula of the table above (Schulman, 2020).

    Args:
        logps: Of the policy, any shape.
        ref_logps: Of the reference, the same shape.
        estimator: `"k1"`, `"k2"` or `"k3"`; only k1 can be negative.

    Returns:
        Nats per token, in the shape of `logps`.
    """
    if estimator not in get_args(KLEstimator):
        raise UserError(f"Expected argument `estimator` to be 'k1', 'k2' or 'k3', but got {estimator!r}.")
    gap = ref_logps - logps
    if estimator == "k1":
        return -gap
    if estimator == "k2":
        return gap.square() / 2
    return gap.exp() - gap - 1
