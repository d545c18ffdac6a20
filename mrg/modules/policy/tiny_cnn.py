"""A tiny policy that sees with a convolutional tower, in FastVLM's form.

The tower is a ResNet with random weights or an EfficientNet-Lite0 with pretrained ones. From a few thousand studies, a
convolutional tower learns to see in minutes on a CPU what a vision transformer of this size does not learn at all.
"""

from __future__ import annotations

import math
from typing import Any

from mrg.errors import UserError
from mrg.modules.policy import efficientnet
from mrg.modules.policy.load import prepare
from mrg.modules.policy.policy import Policy
from mrg.modules.policy.processor import CHAT_TEMPLATE, IMAGE_TOKEN

STRIDE = 32
"""Pixels along each side of what becomes one image token."""


def tiny_cnn_policy(tokenizer: Any, text_config: dict[str, Any], widths: list[int], max_pixels: int) -> Policy:
    """Build a FastVLM, all of whose weights are trained.

    Random weights are drawn from torch's global generator.

    Args:
        tokenizer: Tokenizer with the special tokens of `build_processor`.
        text_config: Configuration of the language model, a Qwen2.
        widths: Widths of the stages of a ResNet with random weights; empty for a pretrained EfficientNet-Lite0.
        max_pixels: Pixels of an image, a square with sides that are multiples of 32.

    Raises:
        MissingPackageError: If the package with the pretrained weights is not installed.
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
    config = FastVlmConfig(
        text_config={"model_type": "qwen2", **text_config},
        vision_config=_resnet_config(widths) if widths else efficientnet.vision_config(),
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
    model = FastVlmForConditionalGeneration(config)
    if not widths:
        efficientnet.load_pretrained(model.model.vision_tower)
    return prepare(model, processor, None, train_vision=True)


def _resnet_config(widths: list[int]) -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "embedding_size": widths[0],
        "hidden_sizes": list(widths),
        "depths": [1] * len(widths),
        "layer_type": "basic",
        "hidden_size": widths[-1],
    }
