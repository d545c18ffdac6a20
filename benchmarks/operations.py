"""Shapes of the benchmarked models, and the number of operations of their passes."""

from __future__ import annotations

from typing import Any

GEOMETRIES: dict[str, dict[str, dict[str, Any]]] = {
    "smallest": {
        "text": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "intermediate_size": 128, "vocab_size": 2048},
        "vision": {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
                   "fullatt_block_indexes": [0]},
    },
    "tiny": {
        "text": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
                 "intermediate_size": 704, "vocab_size": 2048},
        "vision": {"depth": 4, "hidden_size": 128, "num_heads": 4, "intermediate_size": 344,
                   "fullatt_block_indexes": [3]},
    },
    "3b": {
        "text": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
                 "intermediate_size": 11008, "vocab_size": 151936},
        "vision": {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420,
                   "fullatt_block_indexes": [7, 15, 23, 31]},
    },
    "7b": {
        "text": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
                 "intermediate_size": 18944, "vocab_size": 152064},
        "vision": {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420,
                   "fullatt_block_indexes": [7, 15, 23, 31]},
    },
    "32b": {
        "text": {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
                 "intermediate_size": 27648, "vocab_size": 152064},
        "vision": {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3456,
                   "fullatt_block_indexes": [7, 15, 23, 31]},
    },
}  # fmt: skip


def language_operations(geometry: str, prompt: int, copies: int, group: int, length: int) -> float:
    """Operations of one pass of the language model over a group of completions with `copies` copies of their prompt."""
    text = GEOMETRIES[geometry]["text"]
    width = text["hidden_size"]
    kv = text["num_key_value_heads"] * width // text["num_attention_heads"]
    layer = 2 * width * width + 2 * width * kv + 3 * width * text["intermediate_size"]
    tokens = copies * prompt + group * length
    pairs = copies * prompt**2 / 2 + group * (prompt * length + length**2 / 2)
    head = 2 * width * text["vocab_size"] * length * group
    return float(text["num_hidden_layers"] * (2 * tokens * layer + 4 * pairs * width) + head)


def vision_operations(geometry: str, image_tokens: int) -> float:
    """Operations of one pass of the vision tower over the images of a study."""
    vision, patches = GEOMETRIES[geometry]["vision"], 4 * image_tokens
    width, depth, full = vision["hidden_size"], vision["depth"], len(vision["fullatt_block_indexes"])
    block = 4 * width**2 + 3 * width * vision["intermediate_size"]
    return float(2 * depth * block * patches + 4 * width * patches * (patches * full + 64 * (depth - full)))
