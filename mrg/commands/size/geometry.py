"""The shape of a model, counted without loading its weights."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

from mrg.errors import UserError
from mrg.modules.policy.families import FAMILIES, LANGUAGE_LINEARS

_TOWER = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2}

PUBLISHED: dict[str, dict[str, Any]] = {
    "3b": {
        "model_type": "qwen2_5_vl", "dtype": "bfloat16",
        "text_config": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
                        "num_key_value_heads": 2, "intermediate_size": 11008, "vocab_size": 151936,
                        "tie_word_embeddings": True},
        "vision_config": {**_TOWER, "intermediate_size": 3420, "out_hidden_size": 2048},
        "tie_word_embeddings": True,
    },
    "7b": {
        "model_type": "qwen2_5_vl", "dtype": "bfloat16",
        "text_config": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
                        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
                        "tie_word_embeddings": False},
        "vision_config": {**_TOWER, "intermediate_size": 3420, "out_hidden_size": 3584},
        "tie_word_embeddings": False,
    },
    "32b": {
        "model_type": "qwen2_5_vl", "dtype": "bfloat16",
        "text_config": {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40,
                        "num_key_value_heads": 8, "intermediate_size": 27648, "vocab_size": 152064,
                        "tie_word_embeddings": False},
        "vision_config": {**_TOWER, "intermediate_size": 3456, "out_hidden_size": 5120},
        "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Qwen2.5-VL Instruct, from the published config.json of each size (Bai et al., 2025)."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What the memory of a model depends on."""

    num_layers: int  # number of decoder layers
    num_heads: int  # number of query heads
    width: int  # hidden size
    query_width: int  # number of query heads times their width
    kv_width: int  # number of key heads times their width
    inner_width: int  # intermediate size of the MLP
    vocab_size: int  # rows of the head
    decoder: int  # parameters of all decoder layers, without adapters
    largest_layer: int  # parameters of the largest decoder layer
    vision: int  # parameters of the vision tower and projector
    total: int  # parameters of the model, tied ones once
    weights: int  # bytes of a number in the checkpoint
    num_tensors: int  # tensors of the model, tied ones once
    num_decoder_tensors: int  # tensors of the decoder layers
    num_vision_tensors: int  # tensors of the vision tower and projector
    linears: tuple[tuple[int, int], ...]  # shapes (out, in) of all layers that LoRA adapts
    patch_pixels: int  # pixels per image token; 0 if images have a fixed size
    image_tokens: int  # tokens per image; 0 if images have any size
    patches_per_token: int  # patches per image token
    patch_values: int  # numbers per patch
    vision_depth: int  # layers of the vision tower
    vision_width: int  # hidden size of the vision tower
    vision_inner_width: int  # intermediate size of the vision tower's MLP

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of a rank."""
        return sum(rank * (rows + columns) for rows, columns in self.linears)

    @property
    def adapted(self) -> int:
        """Parameters of the layers that LoRA adapts."""
        return sum(rows * columns for rows, columns in self.linears)


def geometry(config: Any) -> Geometry:
    """Count the parameters of a transformers configuration, on the meta device.

    Args:
        config: Configuration object of one of `FAMILIES`, or the content of its config.json.

    Raises:
        UserError: If the family is not supported, or its vision tower is convolutional.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    if isinstance(config, dict):
        kind = config.get("model_type")
        if kind not in FAMILIES:
            raise UserError(f"Expected a model of type {', '.join(FAMILIES)}, but got {kind!r}.")
        config = AutoConfig.for_model(**config)
    vision = config.vision_config
    if not (hasattr(vision, "intermediate_size") or hasattr(vision, "embed_dim")):
        raise UserError(f"The memory of a vision tower of type {vision.model_type!r} is not known to `mrg size`.")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    text, family = config.text_config, FAMILIES[config.model_type]
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.language_model.layers]
    parts = [part for part in (getattr(model.model, name, None) for name in family.vision) if part is not None]
    vision = [p for part in parts for p in part.parameters()]
    linears = [
        (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if re.fullmatch(LANGUAGE_LINEARS, name)
    ]
    return Geometry(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        width=text.hidden_size,
        query_width=text.num_attention_heads * head_width,
        kv_width=text.num_key_value_heads * head_width,
        inner_width=text.intermediate_size,
        vocab_size=text.vocab_size,
        decoder=sum(layers),
        largest_layer=max(layers),
        vision=sum(p.numel() for p in vision),
        total=sum(p.numel() for p in model.parameters()),
        weights=4 if config.dtype in (None, torch.float32, "float32") else 2,
        num_tensors=sum(1 for _ in model.parameters()),
        num_decoder_tensors=sum(1 for _ in model.model.language_model.layers.parameters()),
        num_vision_tensors=len(vision),
        linears=tuple(linears),
        **_images(config),
    )


def _images(config: Any) -> dict[str, int]:
    """Tokens and patches of an image, and the shape of the vision tower."""
    vision = config.vision_config
    if getattr(vision, "embed_dim", 0):  # Qwen2-VL names its width otherwise
        width, inner, depth = vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), vision.depth
    else:
        width, inner = vision.hidden_size, vision.intermediate_size
        depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    tower = {"vision_depth": depth, "vision_width": width, "vision_inner_width": inner}
    merge = getattr(vision, "spatial_merge_size", 0)
    image, patch = (_side(getattr(vision, name, 0)) for name in ("image_size", "patch_size"))
    if merge:
        values = 3 * vision.temporal_patch_size * patch**2
        pixels = (merge * patch) ** 2
        return {**tower, "patch_pixels": pixels, "image_tokens": 0, "patches_per_token": merge**2,
                "patch_values": values}  # fmt: skip
    patches = (image // patch) ** 2
    tokens = getattr(config, "mm_tokens_per_image", None) or getattr(config, "image_seq_length", None) or patches
    return {**tower, "patch_pixels": 0, "image_tokens": tokens, "patches_per_token": -(-patches // tokens),
            "patch_values": 3 * patch**2}  # fmt: skip


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)


def read_geometry(policy: str) -> Geometry:
    """The geometry of a checkpoint, from its config.json alone.

    Args:
        policy: Key of `PUBLISHED`, local folder or hub id.

    Raises:
        ValueError: If the file cannot be read, or the family is not supported.
    """
    from transformers import AutoConfig

    if policy in PUBLISHED:
        return geometry(PUBLISHED[policy])
    local = policy.startswith((".", "/", "~", "runs/")) or Path(policy).exists()
    file = Path(policy).expanduser() / "config.json"
    choice = f"or pass --geometry {', '.join(PUBLISHED)}"
    if local and not file.is_file():
        raise UserError(
            f"Policy {policy!r} has no config.json: train it first, check model.init_args.policy, {choice}."
        )
    # It would warn about each failed request to the hub.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(str(file.parent) if local else policy)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The config.json of policy {policy!r} cannot be read ({reason}): check model.init_args.policy, {choice}."
        ) from None
    if config.model_type not in FAMILIES:
        raise UserError(f"Policy {policy!r} is of type {config.model_type!r}; supported are {', '.join(FAMILIES)}.")
    return geometry(config)
