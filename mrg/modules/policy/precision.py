"""Precision of a run: what is computed in bfloat16, and what is held in float32.

Choices: trained weights are held in float32 (master weights; Micikevicius et al., "Mixed precision training", 2018),
because most optimizer steps are too small for bfloat16, in which the neighbour of 1 is 1 + 1/128; so are their
gradients and Adam's moments. Frozen weights keep `dtype`. Under `bf16-mixed`, matrix products are computed in bfloat16.
Left out: float16, whose gradients have to be scaled, and pure bfloat16.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mrg.errors import UserError

PRECISIONS = {"32-true": False, "32": False, "bf16-mixed": True, "bf16": True}
"""Supported values of `trainer.precision`, including Lightning's short names -> whether bfloat16 autocast is on."""


def check_precision(precision: Any) -> None:
    """Reject a precision that fails, or in which small optimizer steps are rounded away.

    Raises:
        ValueError: If it is none of `PRECISIONS`.
    """
    if str(precision) not in PRECISIONS:
        raise UserError(f"Expected trainer.precision to be 'bf16-mixed' or '32-true', but got {str(precision)!r}.")


def hold_trained(model: nn.Module) -> None:
    """Convert trained parameters to float32, unless they are wider; frozen ones do not change.

    Statistics of a layer with trained parameters (a batch norm's) are converted with them: they must be of one type.
    """
    for layer in model.modules():
        trained = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        for name, buffer in list(layer.named_buffers(recurse=False)) if trained else []:
            if buffer.is_floating_point():
                setattr(layer, name, buffer.to(torch.promote_types(buffer.dtype, torch.float32)))


def float32_depthwise(model: nn.Module) -> None:
    """Compute depthwise convolutions in float32 on a CPU, whatever autocast says.

    Their backward pass in bfloat16 takes PyTorch several times as long; all other layers gain from bfloat16.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            layer.forward = functools.partial(_in_float32, layer.forward)  # type: ignore[method-assign]


def _in_float32(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    if inputs.device.type != "cpu":
        return forward(inputs)
    with torch.autocast("cpu", enabled=False):
        return forward(inputs.float())


class CastAdapter:
    """An adapter cast to autocast's type once per rollout instead of once per decoding step.

    Without gradients, autocast does not cache its casts: every step casts every float32 matrix, which for an adapter
    means two small kernels per linear layer that take a GPU longer to launch than to run. The casts keep their
    addresses between rollouts, because captured CUDA graphs read them there.
    """

    def __init__(self) -> None:
        self.casts: dict[nn.Linear, nn.Parameter] = {}

    @contextlib.contextmanager
    def within(self, matrices: Iterable[nn.Linear]) -> Iterator[None]:
        """Context in which matrices have autocast's type; the originals are restored afterwards.

        Without autocast this does nothing.
        """
        replaced: dict[nn.Linear, Tensor] = {}
        try:
            for linear in matrices:
                weight, device = linear.weight, linear.weight.device.type
                if weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
                    cast = self._cast(linear, torch.get_autocast_dtype(device))
                    replaced[linear] = weight
                    linear.weight = cast
            yield
        finally:
            for linear, weight in replaced.items():
                linear.weight = weight

    def _cast(self, linear: nn.Linear, dtype: torch.dtype) -> nn.Parameter:
        cast, weight = self.casts.get(linear), linear.weight
        # Evaluation runs in inference mode, training does not: a tensor that both write to must not be made in it.
        with torch.inference_mode(False), torch.no_grad():
            if cast is None or (cast.dtype, cast.device) != (dtype, weight.device):
                cast = self.casts[linear] = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
            cast.copy_(weight)
        return cast
