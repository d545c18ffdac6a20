"""How a transformers language model is called, and the attention function that it calls in turn.

Every name of transformers that shared prompts depend on is used here alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrg.modules.prefix.attention import SharedAttention

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
