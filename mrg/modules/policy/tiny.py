"""A tiny policy: a Qwen2.5-VL with a few million random weights, for demos and tests on a CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from mrg.errors import UserError
from mrg.modules.policy.load import prepare
from mrg.modules.policy.policy import Policy
from mrg.modules.policy.processor import build_processor
from mrg.modules.policy.tiny_cnn import tiny_cnn_policy


@dataclasses.dataclass
class Tiny:
    """Shape of a tiny policy; the defaults give about 3 million weights.

    Args:
        hidden_size: Width of the language model and of the vision tower, a multiple of 32.
        num_layers: Number of layers of the language model.
        vision_depth: Number of layers of the vision tower.
        vocab_size: Maximum size of the vocabulary.
        merge_size: Side of the square of patches, of 14 pixels each, that becomes one image token. A small model learns
            much faster from few, large tokens than from many.
        init_std: Standard deviation of the initial weights, about 1 / sqrt(hidden_size).
        rope_theta: Base of the rotary positions, small because prompts and reports are short.
        cnn: Widths of the four stages of a convolutional vision tower; empty builds a vision transformer.
        pretrained: `"efficientnet_lite0"` for a convolutional vision tower pretrained on ImageNet (extra
            `pretrained`); empty draws random weights.
    """

    hidden_size: int = 96
    num_layers: int = 2
    vision_depth: int = 2
    vocab_size: int = 1024
    merge_size: int = 4
    init_std: float = 0.06
    rope_theta: float = 100.0
    cnn: list[int] = dataclasses.field(default_factory=list)
    pretrained: Literal["", "efficientnet_lite0"] = ""

    def __post_init__(self) -> None:
        if self.pretrained not in ("", "efficientnet_lite0"):
            raise UserError(
                "Expected model.init_args.tiny.pretrained to be '' or 'efficientnet_lite0', but got "
                f"{self.pretrained!r}."
            )
        if self.cnn and self.pretrained:
            raise UserError(
                "model.init_args.tiny has both cnn and pretrained, but a policy has one vision tower: remove one."
            )


def text_config(shape: Tiny, tokenizer: Any, **rope: Any) -> dict[str, Any]:
    """Configuration of the language model, a small Qwen2.

    Args:
        shape: Shape of the policy.
        tokenizer: Its tokenizer.
        **rope: Further parameters of the rotary positions.
    """
    num_heads = shape.hidden_size // 32
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden_size,
        "intermediate_size": 3 * shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta, **rope},
        "initializer_range": shape.init_std,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    }


def tiny_policy(corpus: Sequence[str], shape: Tiny | None = None, max_pixels: int = 112 * 112) -> Policy:
    """Build a Qwen2.5-VL with random weights, all of them trained, and a tokenizer trained on a corpus.

    Weights are drawn from torch's global generator.

    Args:
        corpus: Texts that the policy will read and write.
        shape: Shape of the policy; `Tiny()` by default.
        max_pixels: Pixel budget of one image.

    Raises:
        ValueError: If the width is not a multiple of 32.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    shape = shape or Tiny()
    if shape.hidden_size % 32:
        raise UserError(f"Expected `hidden_size` of a tiny policy to be a multiple of 32, but got {shape.hidden_size}.")
    if shape.cnn or shape.pretrained:
        tokenizer = build_processor(corpus, shape.vocab_size).tokenizer
        return tiny_cnn_policy(tokenizer, text_config(shape, tokenizer), shape.cnn, max_pixels)
    processor = build_processor(corpus, shape.vocab_size, max_pixels, shape.merge_size)
    tokenizer = processor.tokenizer
    num_heads = shape.hidden_size // 32
    marks = {
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
    }
    config = Qwen2_5_VLConfig(
        text_config=text_config(shape, tokenizer, mrope_section=[4, 6, 6]),
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.hidden_size,
            "intermediate_size": 3 * shape.hidden_size,
            "num_heads": num_heads,
            "out_hidden_size": shape.hidden_size,
            "fullatt_block_indexes": list(range(shape.vision_depth)),
            "spatial_merge_size": shape.merge_size,
            "initializer_range": shape.init_std,
        },
        tie_word_embeddings=True,
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()},
    )
    return prepare(Qwen2_5_VLForConditionalGeneration(config), processor, None, train_vision=True)
