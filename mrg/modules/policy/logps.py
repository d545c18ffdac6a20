"""Log-probabilities of given tokens, without holding the logits of the whole vocabulary at all of them.

`log p(y) = z_y - logsumexp(z)` with `z = W h / temperature`; its gradient is `(W_y - sum_v p_v W_v) / temperature`.
The gradient is computed in the forward pass, tile by tile, so that the backward pass through a frozen head is one
multiplication per element, and (T, D) values are stored, never (T, V). A trained head recomputes its tiles. If it is
needed, the gradient of the entropy H, `-sum_v p_v (log p_v + H) W_v / temperature`, is computed in the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 2**25
"""Number of logits held at a time: 128 MB in float32."""


class TokenLogps(NamedTuple):
    """Log-probabilities of T tokens, and entropies of the distributions that they were sampled from.

    Args:
        logps: (T,) float32 or float64, in nats, with gradient.
        entropy: (T,) in nats, with gradient only if it was asked for.
    """

    logps: Tensor
    entropy: Tensor


def token_logps(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0, banned: Tensor | None = None,
    entropy_gradient: bool = False,
) -> TokenLogps:  # fmt: skip
    """Log-probability of each token under the tempered distribution over the allowed tokens.

    Args:
        hidden: (T, D) hidden states that predict the tokens.
        weight: (V, D) weight of the head, in the type of the hidden states; a bias is not supported.
        ids: (T,) token ids.
        temperature: Sampling temperature, by which logits are divided.
        banned: Ids that are never sampled.
        entropy_gradient: Whether the entropy has a gradient.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden, weight = (x.to(torch.get_autocast_dtype(kind)) for x in (hidden, weight))
    logps, entropy = _TokenLogps.apply(  # type: ignore[no-untyped-call]
        hidden, weight, ids, temperature, banned, entropy_gradient
    )
    return TokenLogps(logps, entropy)


def _log_probs(hidden: Tensor, weight: Tensor, temperature: float, banned: Tensor | None) -> Tensor:
    logits = F.linear(hidden, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if banned is not None:
        logits[:, banned] = -torch.inf
    return torch.log_softmax(logits, -1)


def _entropy_slope(log_probs: Tensor) -> Tensor:
    """(T, V) derivative of the entropy of each row by the logits."""
    probs, finite = log_probs.exp(), log_probs.nan_to_num(neginf=0.0)
    return probs * ((probs * finite).sum(-1, keepdim=True) - finite)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        temperature: float,
        banned: Tensor | None,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logps, entropy = (torch.empty(len(ids), dtype=dtype, device=hidden.device) for _ in range(2))
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        direction = torch.empty_like(hidden) if needs_hidden else None
        slope = torch.empty_like(hidden) if needs_hidden and entropy_gradient else None
        ctx.tile = max(1, TILE // len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(ids), ctx.tile):
                part = slice(start, start + ctx.tile)
                log_probs = _log_probs(hidden[part], weight, temperature, banned)
                logps[part] = log_probs.gather(1, ids[part, None])[:, 0]
                probs = log_probs.exp()
                entropy[part] = -(probs * log_probs.nan_to_num(neginf=0.0)).sum(-1)
                if direction is not None:
                    direction[part] = (weight[ids[part]] - probs.to(weight.dtype) @ weight) / temperature
                if slope is not None:
                    slope[part] = _entropy_slope(log_probs).to(weight.dtype) @ weight / temperature
        kept = (hidden, weight, ids) if needs_weight else (None, None, None)
        ctx.save_for_backward(direction, slope, banned, *kept)
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, grad_entropy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        direction, slope, banned, hidden, weight, ids = ctx.saved_tensors
        grad_hidden = None if direction is None else direction * grad[:, None].to(direction.dtype)
        if slope is not None:
            grad_hidden = grad_hidden + slope * grad_entropy[:, None].to(slope.dtype)
        grad_weight = None
        if weight is not None:
            # A sum in half precision would lose more with every tile.
            exact = torch.promote_types(weight.dtype, torch.float32)
            total = torch.zeros(weight.shape, dtype=exact, device=weight.device)
            with torch.autocast(hidden.device.type, enabled=False):
                for start in range(0, len(ids), ctx.tile):
                    part = slice(start, start + ctx.tile)
                    log_probs = _log_probs(hidden[part], weight, ctx.temperature, banned)
                    slopes = _entropy_slope(log_probs) * grad_entropy[part, None] if ctx.entropy_gradient else None
                    outer = log_probs.exp()
                    del log_probs  # a tile is the peak of memory
                    outer = -outer
                    outer.scatter_add_(1, ids[part, None], torch.ones_like(outer[:, :1]))
                    outer = outer * grad[part, None] if slopes is None else outer * grad[part, None] + slopes
                    outer = (outer / ctx.temperature).to(weight.dtype)
                    total += outer.T @ hidden[part]
            grad_weight = total.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None
