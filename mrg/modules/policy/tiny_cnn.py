"""A tiny policy that sees with a convolutional tower: FastVLM's form with a ResNet, a few million random weights.

From a few thousand studies and random weights a convolutional tower learns to see in minutes on a CPU what a vision
transformer of this size does not learn at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mrg.errors import UserError
from mrg.modules.policy.load import prepare
from mrg.modules.policy.policy import Policy
from mrg.modules.policy.processor import CHAT_TEMPLATE, IMAGE_TOKEN, build_processor

if TYPE_CHECKING:
    from mrg.modules.policy.tiny import Tiny

STRIDE = 32
"""Pixels along each side of what becomes one image token."""


def tiny_cnn_policy(corpus: Sequence[str], shape: Tiny, max_pixels: int = 128 * 128) -> Policy:
    """Build a FastVLM of random weights with a ResNet as its tower, and a tokenizer trained on the corpus.

    Weights come from torch's global generator.

    Args:
        corpus: Texts that the policy will read and write.
        shape: Shape of the policy; `cnn` holds the widths of the tower's stages.
        max_pixels: Pixels of an image, a square of a multiple of 32 on each side.

    Raises:
        UserError: If `max_pixels` is not such a square.
    """
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration, LlavaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    side = math.isqrt(max_pixels)
    if side * side != max_pixels or side % STRIDE:
        raise UserError(
            f"Expected model.init_args.max_pixels of a policy with a convolutional tower to be the square of a "
            f"multiple of {STRIDE}, such as {128 * 128}, but got {max_pixels}."
        )
    tokenizer = build_processor(corpus, shape.vocab_size).tokenizer
    num_heads = shape.hidden_size // 32
    config = FastVlmConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": shape.hidden_size,
            "intermediate_size": 3 * shape.hidden_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_heads,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
            "initializer_range": shape.init_std,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
        vision_config={
            "model_type": "resnet",
            "embedding_size": shape.cnn[0],
            "hidden_sizes": list(shape.cnn),
            "depths": [1] * len(shape.cnn),
            "layer_type": "basic",
            "hidden_size": shape.cnn[-1],
        },
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(side // STRIDE) ** 2,
        tie_word_embeddings=True,
    )
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size={"height": side, "width": side}),
        tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=0,
    )
    return prepare(FastVlmForConditionalGeneration(config), processor, None, train_vision=True)
