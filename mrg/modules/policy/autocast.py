"""Casts of an adapter that autocast would make again in every step of decoding.

Without gradients autocast keeps no casts: each pass casts each float32 weight that it multiplies by. Of an adapter
these are two small kernels for each linear layer and step, which on a GPU take longer to launch than to run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class CastAdapter:
    """Holds an adapter's casts, in tensors that stay where they are: a captured graph reads them at their address."""

    def __init__(self) -> None:
        self.casts: dict[nn.Linear, nn.Parameter] = {}

    @contextlib.contextmanager
    def within(self, layers: Iterable[Any]) -> Iterator[None]:
        """Within this context the adapter's matrices stand in autocast's type, to which it would cast them itself.

        The matrices themselves are set aside and come back unchanged. Outside of autocast this does nothing.

        Args:
            layers: peft's LoRA layers.
        """
        replaced: dict[nn.Linear, Tensor] = {}
        try:
            for linear in (part for layer in layers for part in _matrices(layer)):
                weight, kind = linear.weight, linear.weight.device.type
                if weight.dtype == torch.float32 and torch.is_autocast_enabled(kind):
                    cast = self._cast(linear, torch.get_autocast_dtype(kind))
                    replaced[linear] = weight
                    linear.weight = cast
            yield
        finally:
            for linear, weight in replaced.items():
                linear.weight = weight

    def _cast(self, linear: nn.Linear, dtype: torch.dtype) -> nn.Parameter:
        kept, weight = self.casts.get(linear), linear.weight
        with torch.inference_mode(False), torch.no_grad():  # evaluation writes to it in inference mode, training not
            if kept is None or (kept.dtype, kept.device) != (dtype, weight.device):
                kept = self.casts[linear] = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
            kept.copy_(weight)
        return kept


def _matrices(layer: Any) -> list[nn.Linear]:
    """A and B of each of a layer's adapters."""
    return [*layer.lora_A.values(), *layer.lora_B.values()]
