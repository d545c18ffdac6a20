"""Base of the metrics: their sums keep float64, whatever dtype the module that holds them is converted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchmetrics import Metric


class ReportMetric(Metric):
    """A metric whose states move between devices and keep their dtype.

    `module.to(torch.bfloat16)`, as by Lightning's `precision="bf16-true"`, and `set_dtype` would round the sums: in
    bfloat16, a sum of ones ends at 256.
    """

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        def move(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        return super()._apply(move, exclude_state)
