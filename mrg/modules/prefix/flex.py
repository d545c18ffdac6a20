"""Attention over a packed row by PyTorch's FlexAttention (Dong et al., 2024), for CUDA GPUs.

`concatenated` copies the keys of a prompt for each of its completions. Here one compiled kernel reads the whole row and
skips the blocks in which no token attends to another: a completion reads the one copy of its prompt's keys.

Recent PyTorch has no backward pass of FlexAttention on a CPU. It has not been run on a GPU yet, so at its first use for
each sliding window and type, output and gradients are compared with those of `concatenated`, which takes over if they
differ.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.errors import UserError
from mrg.log import log
from mrg.modules.prefix.attention import PackedPrompts, concatenated
from mrg.modules.prefix.packing import Layout, Masks

Attention = Literal["auto", "flex", "concatenated"]
"""Attention of the policy pass on a CUDA GPU; `"auto"` is `"concatenated"`."""

MULTIPLE = 512
"""Rows are padded to a multiple of this many tokens, so that few lengths are compiled."""
LARGEST_ERROR = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Type -> largest relative error (in the Euclidean norm) of output and gradients."""


def row_mask(layout: Layout, window: int | None, size: int, device: torch.device) -> Any:
    """Function of (batch, head, query, key) indices: whether a token of a packed row attends to another.

    Args:
        layout: Indices of the row's L tokens.
        window: Sliding-window size in tokens, including the token itself; None for no limit.
        size: L, or more with padding, whose tokens attend to each other alone.
        device: Device of the row.
    """
    lengths = [stop - start for start, stop in layout.prompts]
    longest = [max(1, slots.shape[1]) for slots in layout.slots]
    numbers = range(len(lengths))
    offsets = [sum(len(slots) for slots in layout.slots[:i]) for i in numbers]
    padding = size - sum(lengths) - sum(map(len, layout.tokens))
    text = [torch.full((length,), -1) for length in lengths]

    def joined(prompts: list[Tensor], completions: list[Tensor], rest: Tensor) -> Tensor:
        return torch.cat([part.to(device) for part in (*prompts, *completions, rest)])

    rest = torch.full((padding,), -1)
    study = joined(
        [torch.full((length,), i) for i, length in enumerate(lengths)],
        [torch.full((len(tokens),), i) for i, tokens in enumerate(layout.tokens)],
        rest,
    )  # (L,)
    completion = joined(
        text, [layout.tokens[i] // longest[i] + offsets[i] for i in numbers], rest
    )  # (L,), -1 at prompts
    place = joined(
        [torch.arange(length) for length in lengths],
        [layout.tokens[i] % longest[i] + lengths[i] for i in numbers],
        torch.arange(padding),
    )  # (L,) index among the tokens that a completion reads
    image = joined(layout.blocks or text, [torch.full((len(tokens),), -1) for tokens in layout.tokens], rest)  # (L,)

    def attends(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        reads = (completion[key] < 0) | (completion[key] == completion[query])
        both = (image[key] >= 0) & (image[key] == image[query])  # the tokens of an image, in both directions
        seen = (study[key] == study[query]) & reads & ((place[key] <= place[query]) | both)
        return seen if window is None else seen & (place[key] > place[query] - window)

    return attends


def _attention(*args: Any, **kwargs: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(*args, **kwargs)


@functools.cache
def _kernel(compiled: bool, window: int | None) -> Any:
    if not compiled:
        return _attention
    # PyTorch keeps at most 8 compiled forms of a code object and runs others uncompiled, which takes far more memory.
    # A window has four: with and without gradients, of one length and of any.
    code = _attention.__code__.replace(co_name=f"attention_{window}")
    return torch.compile(types.FunctionType(code, _attention.__globals__))


def flex(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, scale: float, window: int | None = None) -> Tensor:
    """Attention over a packed row.

    Args:
        query: (1, H, L, d).
        key: (1, K, L, d), K a divisor of H.
        value: (1, K, L, d).
        block_mask: Result of `block_mask`.
        scale: Factor of the products of queries and keys.
        window: Sliding window of the mask; a kernel is compiled for each.

    Returns:
        (1, H, L, d).
    """
    length = query.shape[2]
    padding = block_mask.seq_lengths[0] - length
    query, key, value = (F.pad(x, (0, 0, 0, padding)) for x in (query, key, value))
    output: Tensor = _kernel(query.device.type == "cuda", window)(
        query, key, value, block_mask=block_mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output[:, :, :length]


def block_mask(layout: Layout, window: int | None, length: int, device: torch.device) -> Any:
    """FlexAttention's mask of a packed row of `length` tokens, see `row_mask`; the same for all heads."""
    from torch.nn.attention.flex_attention import create_block_mask

    size = -(-length // MULTIPLE) * MULTIPLE
    return create_block_mask(row_mask(layout, window, size, device), None, None, size, size, device=device)


class Flex:
    """Where FlexAttention can be relied on: for which windows and types it agrees with `concatenated`."""

    def __init__(self) -> None:
        self.agrees: dict[tuple[int | None, torch.dtype], bool] = {}

    def works(
        self, window: int | None, tensors: tuple[Tensor, ...], own: Callable[..., Tensor], other: Callable[..., Tensor]
    ) -> bool:
        """Compare output and gradients at the first use for a window and type; log a line if they differ.

        What was decided is kept, so that a layer that is recomputed in the backward pass computes the same again.

        Args:
            window: Sliding-window size, or None.
            tensors: Query, key and value.
            own: FlexAttention on them.
            other: `concatenated` on them.
        """
        case = (window, tensors[0].dtype)
        if case not in self.agrees:
            try:
                error = largest_error(tensors, own, other)
                reason = "" if error <= LARGEST_ERROR[case[1]] else f"it differs by {100 * error:.2g} %"
            except Exception as failure:  # of many kinds, from the compiler; the other attention needs none
                reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
            if reason:
                log.warning("FlexAttention is not used, but attention over copied keys: %s.", reason)
            self.agrees[case] = not reason
        return self.agrees[case]


def largest_error(
    tensors: tuple[Tensor, ...], first: Callable[..., Tensor], second: Callable[..., Tensor], backward: bool = True
) -> float:
    """Largest relative error of a function's output and gradients, compared with another function's.

    Args:
        tensors: Arguments of both.
        first: Function whose error is measured.
        second: Function that is right.
        backward: Compare gradients as well.
    """
    results: list[list[Tensor]] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)  # in place of those of checkpointing
    for function in (first, second):
        with hooks, torch.set_grad_enabled(backward):
            given = [x.detach().requires_grad_(backward) for x in tensors]
            output = function(*given)
            if not results:
                # The same for both; not constant, because the gradient of a plain sum hardly depends on queries.
                generator = torch.Generator().manual_seed(0)
                weights = torch.randn(output.shape, generator=generator).to(output)
            gradients = torch.autograd.grad((output * weights).sum(), given) if backward else ()
            results.append([x.detach().double() for x in (output, *gradients)])
    errors = [float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(*results, strict=True)]
    return max(errors, key=lambda error: torch.inf if error != error else error)


class FlexPrompts(PackedPrompts):
    """Attention over a packed row by FlexAttention.

    Args:
        layout: Indices of the row's tokens.
        state: State shared by all rows of a policy.
    """

    def __init__(self, layout: Layout, state: Flex) -> None:
        super().__init__(layout)
        self.state = state
        self.block_masks: dict[int | None, Any] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Attention of one layer, see `SharedAttention`; R is 1."""
        if window not in self.block_masks:
            self.masks[window] = Masks.of(self.layout, window, query)
            self.block_masks[window] = block_mask(self.layout, window, query.shape[2], query.device)
        block, masks = self.block_masks[window], self.masks[window]

        def own(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return flex(query, key, value, block, scale, window)

        def copied(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return concatenated(query, key, value, self.layout, masks, scale)

        works = self.state.works(window, (query, key, value), own, copied)
        return (own if works else copied)(query, key, value)


def flex_state(attention: Attention, device: torch.device) -> Flex | None:
    """State of FlexAttention for a policy on a device, or None if the setting is another one.

    Raises:
        UserError: If the setting is unknown, or FlexAttention is set on another device than a CUDA GPU.
    """
    if attention not in ("auto", "flex", "concatenated"):
        raise UserError(
            f"Expected model.init_args.attention to be 'auto', 'flex' or 'concatenated', but got {attention!r}."
        )
    if attention != "flex":
        return None
    if device.type != "cuda":
        raise UserError(
            f"model.init_args.attention flex requires a CUDA GPU, but the device is {device}, on which FlexAttention "
            "has no backward pass: set it to auto."
        )
    return Flex()
