"""Attention of completions that share a prompt: every prompt is kept once, however many completions follow it.

A packed row is [prompt_1 … prompt_B | completion_1 … completion_N] without padding. A prompt attends causally to
itself, but where the model reads an image's tokens in both directions; a completion attends to all of its prompt and
causally to itself, both within the layer's window where it has one. The second is computed as two attentions, all
completions of a prompt against its one copy of keys, and each completion against itself, merged by their log-sum-exp
(Milakov and Gimelshein, 2018): the same softmax, without a prompt's keys per completion. In the backward pass both
parts get the merged output and log-sum-exp, from which each computes its share of the gradient (as in Ring Attention;
Liu et al., 2023).

transformers calls `attention` for every layer of the language model; what is packed, or decoded, comes with the call.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

from mrg.modules.prefix.layout import Layout, Masks

NAME = "mrg_shared"


class SharedAttention(Protocol):
    """What a pass over shared prompts hands to every layer."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Attention of one layer.

        Args:
            layer: Index of the layer.
            query: (R, H, L, d), rotated.
            key: (R, K, L, d), K heads that divide H.
            value: (R, K, L, d).
            scale: Of the products.
            window: A token sees itself and so many less one before it; None sets no limit.

        Returns:
            (R, H, L, d).
        """


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
    """The attention function that transformers calls: shared prompts where they are given, otherwise PyTorch's."""
    if shared is not None:
        kind = query.device.type
        if torch.is_autocast_enabled(kind):  # as PyTorch's own does; rotated queries and keys are float32 under it
            query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = shared.attend(module.layer_idx, query, key, value, scale, kwargs.get("sliding_window"))
        return output.transpose(1, 2), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    result: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return result


def install(language_model: Any) -> None:
    """Make a transformers language model call `attention`; passes without shared prompts stay as they are."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    language_model.config._attn_implementation = NAME


class PackedPrompts:
    """Attention over a packed row; see the module.

    Args:
        layout: Where tokens are.
        keep: Keep each layer's keys and values of the prompts, for decoding after them.
    """

    def __init__(self, layout: Layout, keep: bool = False) -> None:
        self.layout, self.keep = layout, keep
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.masks: dict[int | None, Masks] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """See `SharedAttention`; R is 1."""
        if self.keep:
            self.kept[layer] = (key, value)
        if window not in self.masks:
            # Layers of a kind share them, also when checkpointing runs a layer again.
            self.masks[window] = Masks.of(self.layout, window, query)
        masks = self.masks[window]
        if query.device.type == "cpu":
            output: Tensor = _Merged.apply(query, key, value, self.layout, masks, scale)  # type: ignore[no-untyped-call]
            return output
        return concatenated(query, key, value, self.layout, masks, scale)


def concatenated(query: Tensor, key: Tensor, value: Tensor, layout: Layout, masks: Masks, scale: float) -> Tensor:
    """The same by PyTorch's public attention, on any device: keys of a prompt are copied for its completions."""
    from torch.nn.attention.bias import causal_lower_right

    parts = []
    for (start, stop), seen in zip(layout.prompts, masks.prompts, strict=True):
        q, k, v = (x[:, :, start:stop] for x in (query, key, value))
        parts.append(_sdpa(q, k, v, seen, scale))
    for (start, stop), (first, last), slots, tokens, reach in zip(
        layout.prompts, layout.completions, layout.slots, layout.tokens, masks.reaches, strict=True
    ):
        if first == last:
            continue
        num_rows, longest = slots.shape
        q, k, v = (_rows(x[:, :, first:last], slots) for x in (query, key, value))
        k, v = (
            torch.cat([x[:, :, start:stop].expand(num_rows, -1, -1, -1), own], 2) for x, own in ((key, k), (value, v))
        )
        # A query of a completion sees all keys before its own, and padding comes after every real token.
        mask: Any = causal_lower_right(longest, k.shape[2])
        if reach is not None:
            mask = torch.cat([reach, reach.new_ones(longest, longest).tril()], 1)
        output = _sdpa(q, k, v, mask, scale)
        parts.append(_packed(output, tokens))
    return torch.cat(parts, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float) -> Tensor:
    """PyTorch's attention, causal where there is no mask."""
    groups = query.shape[1] // key.shape[1]
    # A GPU's fused kernels take fewer heads of keys in half precision and without a mask; where there is no fused one,
    # all products of queries and keys stand in memory at once.
    half = query.dtype in (torch.float16, torch.bfloat16)
    if groups > 1 and (type(mask) is Tensor or not half):
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def _rows(packed: Tensor, slots: Tensor) -> Tensor:
    """(1, H, T, …) tokens of a prompt's completions -> (G, H, C, …), a row for each."""
    found = packed[0].index_select(1, slots.flatten())
    return found.view(len(found), *slots.shape, *found.shape[2:]).transpose(0, 1)


def _packed(rows: Tensor, tokens: Tensor) -> Tensor:
    """(G, H, C, …) rows of a prompt's completions -> (1, H, T, …), without padding."""
    return rows.transpose(0, 1).flatten(1, 2).index_select(1, tokens)[None]


_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
FEWER_KEY_HEADS = TorchVersion(torch.__version__) >= "2.9"
"""Whether the kernels may be given fewer heads of keys than of queries: torch 2.8's read beyond them."""


def flash_forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The CPU's kernel: output (R, H, L, d) and log-sum-exp (R, H, L); other arguments are the kernel's."""
    groups = 1 if FEWER_KEY_HEADS else query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    result: tuple[Tensor, Tensor] = _flash_forward(query, key, value, *args, **kwargs)
    return result


def flash_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; see `flash_forward`."""
    groups = 1 if FEWER_KEY_HEADS else query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    parts: tuple[Tensor, Tensor, Tensor] = _flash_backward(grad, query, key, value, *args, **kwargs)
    if groups == 1:
        return parts
    of_key, of_value = (part.reshape(*key.shape[:1], -1, groups, *key.shape[2:]).sum(2) for part in parts[1:])
    return parts[0], of_key, of_value


class _Merged(torch.autograd.Function):
    """Both parts by the CPU's flash kernels, which return the log-sum-exp that the public function hides."""

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
            above, above_lse = flash_forward(q, k, v, scale=scale, **masks.reach(index))
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
                lse[:, :, own], 0.0, scale=scale, **masks.reach(index),
            )  # fmt: skip
            grad_query[:, :, own] += parts[0]
            grad_key[:, :, prompt] += parts[1]
            grad_value[:, :, prompt] += parts[2]
            # A padded query has no gradient, and no real query sees a padded key: neither contributes.
            rows = [_rows(x[:, :, own], slots) for x in (grad, query, key, value, output, lse)]
            rows[0] = rows[0] * real[:, None, :, None]
            parts = flash_backward(*rows, 0.0, True, scale=scale)
            for total, part in zip((grad_query, grad_key, grad_value), parts, strict=True):
                total[:, :, own] += _packed(part, tokens)
        return grad_query, grad_key, grad_value, None, None, None
