"""Attention of completions that share a prompt: each prompt is in the row once, however many completions follow it.

A packed row is [prompt_1 … prompt_B | completion_1 … completion_N] without padding. A prompt attends causally to
itself, except where the model reads the tokens of an image in both directions. A completion attends to its prompt and
causally to itself. Both are limited by the layer's sliding window, if it has one. A completion's attention is computed
in two parts, all completions of a prompt against its one copy of keys, and each completion against itself, which are
merged by their log-sum-exp (Milakov and Gimelshein, 2018): the same softmax, without one copy of the prompt's keys per
completion. In the backward pass each part computes its share of the gradient from the merged output and log-sum-exp (as
in Ring Attention; Liu et al., 2023).

`hidden_states` calls a transformers language model, which calls `attention` in every layer, which calls
`SharedAttention.attend`. All names of transformers that shared prompts depend on, and PyTorch's private CPU kernels,
are used here alone.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

from mrg.modules.prefix.packing import Layout, Masks


class SharedAttention(Protocol):
    """Attention over shared prompts, passed to every layer of the language model."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Attention of one layer.

        Args:
            layer: Index of the layer.
            query: (R, H, L, d), rotated.
            key: (R, K, L, d), rotated; K a divisor of H.
            value: (R, K, L, d).
            scale: Factor of the products of queries and keys.
            window: Sliding-window size in tokens, including the token itself; None for no limit.

        Returns:
            (R, H, L, d).
        """


class PackedPrompts:
    """Attention over a packed row.

    Args:
        layout: Indices of the row's tokens.
        keep: Store each layer's keys and values of the prompts in `kept`, for decoding.
    """

    def __init__(self, layout: Layout, keep: bool = False) -> None:
        self.layout, self.keep = layout, keep
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.masks: dict[int | None, Masks] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Attention of one layer, see `SharedAttention`; R is 1."""
        if self.keep:
            self.kept[layer] = (key, value)
        if window not in self.masks:
            # Shared by all layers with this window, also when checkpointing recomputes a layer.
            self.masks[window] = Masks.of(self.layout, window, query)
        masks = self.masks[window]
        if query.device.type == "cpu":
            output: Tensor = _Merged.apply(query, key, value, self.layout, masks, scale)  # type: ignore[no-untyped-call]
            return output
        return concatenated(query, key, value, self.layout, masks, scale)


def concatenated(query: Tensor, key: Tensor, value: Tensor, layout: Layout, masks: Masks, scale: float) -> Tensor:
    """The same by PyTorch's public attention, on any device: copies a prompt's keys for each of its completions."""
    from torch.nn.attention.bias import causal_lower_right

    parts = []
    for (start, stop), mask in zip(layout.prompts, masks.prompts, strict=True):
        q, k, v = (x[:, :, start:stop] for x in (query, key, value))
        parts.append(_sdpa(q, k, v, mask, scale))
    for (start, stop), (first, last), slots, tokens, mask in zip(
        layout.prompts, layout.completions, layout.slots, layout.tokens, masks.completions, strict=True
    ):
        if first == last:
            continue
        num_rows, longest = slots.shape
        q, k, v = (_rows(x[:, :, first:last], slots) for x in (query, key, value))
        k, v = (
            torch.cat([x[:, :, start:stop].expand(num_rows, -1, -1, -1), own], 2) for x, own in ((key, k), (value, v))
        )
        # A completion's query attends to all keys before its own; padding comes after every real token.
        own_mask: Any = causal_lower_right(longest, k.shape[2])
        if mask is not None:
            own_mask = torch.cat([mask, mask.new_ones(longest, longest).tril()], 1)
        parts.append(_packed(_sdpa(q, k, v, own_mask, scale), tokens))
    return torch.cat(parts, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float) -> Tensor:
    """PyTorch's attention, causal without a mask."""
    groups = query.shape[1] // key.shape[1]
    # A GPU's fused kernels accept fewer key heads only in half precision and without a mask; the fallback would hold
    # all products of queries and keys in memory at once.
    half = query.dtype in (torch.float16, torch.bfloat16)
    if groups > 1 and (type(mask) is Tensor or not half):
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def _rows(packed: Tensor, slots: Tensor) -> Tensor:
    """(1, H, T, …) tokens of a prompt's completions -> (G, H, C, …), one padded row per completion."""
    found = packed[0].index_select(1, slots.flatten())
    return found.view(len(found), *slots.shape, *found.shape[2:]).transpose(0, 1)


def _packed(rows: Tensor, tokens: Tensor) -> Tensor:
    """(G, H, C, …) padded rows -> (1, H, T, …) tokens: the inverse of `_rows`."""
    return rows.transpose(0, 1).flatten(1, 2).index_select(1, tokens)[None]


class _Merged(torch.autograd.Function):
    """Both parts by the CPU's flash kernels, merged by their log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, masks: Masks, scale: float
    ) -> Tensor:
        output = torch.empty_like(query)
        lse = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for index, (start, stop) in enumerate(layout.prompts):
            q, k, v = (x[:, :, start:stop] for x in (query, key, value))
            output[:, :, start:stop], lse[:, :, start:stop] = flash_forward(q, k, v, scale=scale, **masks.prompt(index))
        for index, ((start, stop), (first, last), slots, tokens) in enumerate(
            zip(layout.prompts, layout.completions, layout.slots, layout.tokens, strict=True)
        ):
            if first == last:
                continue
            q = query[:, :, first:last]
            k, v = key[:, :, start:stop], value[:, :, start:stop]
            above, above_lse = flash_forward(q, k, v, scale=scale, **masks.completion(index))
            own = [_rows(x[:, :, first:last], slots) for x in (query, key, value)]
            own_output, own_lse = flash_forward(*own, is_causal=True, scale=scale)
            own_output, own_lse = (_packed(x, tokens) for x in (own_output, own_lse))
            total = torch.logaddexp(above_lse, own_lse)
            weight = (above_lse - total).exp()[..., None]
            output[:, :, first:last] = above * weight + own_output * (own_lse - total).exp()[..., None]
            lse[:, :, first:last] = total
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout, ctx.masks, ctx.scale = layout, masks, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, output, lse = ctx.saved_tensors
        layout, masks, scale = ctx.layout, ctx.masks, ctx.scale
        grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
        for index, (start, stop) in enumerate(layout.prompts):
            span = slice(start, stop)
            parts = flash_backward(
                grad[:, :, span], query[:, :, span], key[:, :, span], value[:, :, span], output[:, :, span],
                lse[:, :, span], 0.0, scale=scale, **masks.prompt(index),
            )  # fmt: skip
            for total, part in zip((grad_query, grad_key, grad_value), parts, strict=True):
                total[:, :, span] += part
        for index, ((start, stop), (first, last), slots, real, tokens) in enumerate(
            zip(layout.prompts, layout.completions, layout.slots, layout.real, layout.tokens, strict=True)
        ):
            if first == last:
                continue
            prompt, own = slice(start, stop), slice(first, last)
            parts = flash_backward(
                grad[:, :, own], query[:, :, own], key[:, :, prompt], value[:, :, prompt], output[:, :, own],
                lse[:, :, own], 0.0, scale=scale, **masks.completion(index),
            )  # fmt: skip
            grad_query[:, :, own] += parts[0]
            grad_key[:, :, prompt] += parts[1]
            grad_value[:, :, prompt] += parts[2]
            # Padding contributes nothing: a padded query gets no gradient, and no real query attends to a padded key.
            rows = [_rows(x[:, :, own], slots) for x in (grad, query, key, value, output, lse)]
            rows[0] = rows[0] * real[:, None, :, None]
            parts = flash_backward(*rows, 0.0, True, scale=scale)
            for total, part in zip((grad_query, grad_key, grad_value), parts, strict=True):
                total[:, :, own] += _packed(part, tokens)
        return grad_query, grad_key, grad_value, None, None, None


NAME = "mrg_shared"
"""Name of the attention function in transformers' registry."""


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared: SharedAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: over shared prompts if `shared` is given, otherwise that of PyTorch."""
    if shared is not None:
        device = query.device.type
        if torch.is_autocast_enabled(device):  # like PyTorch's own attention: rotated queries and keys are float32
            query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = shared.attend(module.layer_idx, query, key, value, scale, kwargs.get("sliding_window"))
        return output.transpose(1, 2), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    result: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return result


def install_attention(language_model: Any) -> None:
    """Make a transformers language model call `attention`. Its passes without shared prompts do not change."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    language_model.set_attn_implementation(NAME)


def hidden_states(
    language_model: Any,
    embeds: Tensor,
    position_ids: Tensor,
    mask: Any = None,
    shared: SharedAttention | None = None,
    visual: Tensor | None = None,
    deepstack: tuple[Tensor, ...] = (),
) -> Tensor:
    """Last hidden states (R, L, D) of a language model.

    Args:
        language_model: A transformers model on which `install_attention` was called.
        embeds: (R, L, D) input embeddings.
        position_ids: Positions in the form that the model takes.
        mask: Attention mask in the form that the model takes.
        shared: Attention over shared prompts.
        visual: (R, L) bool, True at image tokens; required with `deepstack`.
        deepstack: For each of the first layers (V, D), which is added at the V image tokens after that layer.
    """
    extra: dict[str, Any] = {} if shared is None else {"shared": shared}
    if deepstack:
        extra |= {"visual_pos_masks": visual, "deepstack_visual_embeds": list(deepstack)}
    # All by keyword, and no cache: its argument has two names among the supported releases.
    output = language_model(
        attention_mask=mask, position_ids=position_ids, inputs_embeds=embeds, use_cache=False, **extra
    )
    states: Tensor = output.last_hidden_state
    return states


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
