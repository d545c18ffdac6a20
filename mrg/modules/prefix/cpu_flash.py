"""PyTorch's flash-attention kernels for the CPU, which also return the log-sum-exp that its public attention hides.

These operators are private to PyTorch and are used here alone. They take `(query, key, value, dropout, is_causal)` and,
by keyword, `attn_mask` and `scale`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

FEWER_KEY_HEADS = TorchVersion(torch.__version__) >= "2.9"
"""Whether the kernels accept fewer key heads than query heads: those of torch 2.8 read out of bounds."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def flash_forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp.

    Args:
        query: (R, H, L, d).
        key: (R, K, S, d), K a divisor of H.
        value: (R, K, S, d).
        *args: Further arguments of the kernel.
        **kwargs: Further arguments of the kernel.

    Returns:
        Output (R, H, L, d) and log-sum-exp (R, H, L).
    """
    groups = _repeats(query, key)
    result: tuple[Tensor, Tensor] = _forward(query, *(_repeat(x, groups) for x in (key, value)), *args, **kwargs)
    return result


def flash_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; `grad` is that of the output, and shapes are those of `flash_forward`."""
    groups = _repeats(query, key)
    key, value = (_repeat(x, groups) for x in (key, value))
    parts: tuple[Tensor, Tensor, Tensor] = _backward(grad, query, key, value, *args, **kwargs)
    if groups == 1:
        return parts
    grad_key, grad_value = (part.reshape(*key.shape[:1], -1, groups, *key.shape[2:]).sum(2) for part in parts[1:])
    return parts[0], grad_key, grad_value


def _repeats(query: Tensor, key: Tensor) -> int:
    return 1 if FEWER_KEY_HEADS else query.shape[1] // key.shape[1]


def _repeat(tensor: Tensor, groups: int) -> Tensor:
    return tensor.repeat_interleave(groups, 1) if groups > 1 else tensor
