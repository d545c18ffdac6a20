"""A tiny random policy of each Qwen-VL family, sharp enough that a wrong key or position shows."""

import numpy as np
import torch
import transformers

from mrg.datamodules.collate import Batch
from mrg.datamodules.study import Study, View
from mrg.modules.policy.families import FAMILIES
from mrg.modules.policy.load import prepare
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.policy import Policy
from mrg.modules.policy.processor import IMAGE_TOKEN, VIDEO_TOKEN, build_processor

CORPUS = ("The heart is enlarged. No pneumothorax.", "Small left pleural effusion.", "The lungs are clear.")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
}
VISION = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2}
ROPE = {"rope_type": "default", "rope_theta": 100.0}
CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
QWEN = tuple(CLASSES)
assert set(QWEN) <= set(FAMILIES)


def family_policy(
    family: str,
    lora: LoRA | None = None,
    train_vision: bool = False,
    dtype: torch.dtype = torch.float64,
    checkpointing: bool = False,
    **text,
) -> Policy:
    """A policy in training mode whose adapter, where there is one, already does something.

    Args:
        family: One of `QWEN`.
        lora: See `prepare`.
        train_vision: See `prepare`.
        dtype: Of the weights.
        checkpointing: Recompute the language model's activations.
        **text: Other settings of the language model's configuration.
    """
    processor = build_processor(CORPUS, 340, 112 * 112, patch_size=16 if family == "qwen3_vl" else 14)
    tokenizer = processor.tokenizer
    text = {
        "vocab_size": len(tokenizer) + 3,  # as published, more than the tokenizer has
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **TEXT,
        **text,
    }
    vision = dict(VISION)
    if family == "qwen2_vl":
        text["rope_parameters"] = {**ROPE, "mrope_section": [1, 1, 2]}
        vision |= {"embed_dim": 32, "hidden_size": text["hidden_size"], "mlp_ratio": 2, "patch_size": 14}
    elif family == "qwen2_5_vl":
        text["rope_parameters"] = {**ROPE, "mrope_section": [1, 1, 2]}
        vision |= {"hidden_size": 32, "intermediate_size": 48, "fullatt_block_indexes": [1]}
    else:
        text |= {"head_dim": 16, "rope_parameters": {**ROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True}}
        vision |= {"hidden_size": 32, "intermediate_size": 48, "patch_size": 16}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    if family != "qwen2_vl":
        vision["out_hidden_size"] = text["hidden_size"]
    config = getattr(transformers, f"{CLASSES[family]}Config")(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{CLASSES[family]}ForConditionalGeneration")(config).to(dtype)
    if checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = prepare(model, processor, lora, train_vision)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (1.5 if "lora" not in name else 0.5) / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) / 10)
    return policy


def model_inputs(policy: Policy, batch: Batch) -> dict[str, torch.Tensor]:
    """What a Qwen-VL of transformers takes of a batch, in `forward` and in `generate`."""
    return {
        "input_ids": batch.prompt_ids,
        "attention_mask": batch.prompt_mask.long(),
        "pixel_values": batch.pixel_values,
        "image_grid_thw": batch.image_grid_thw,
        "mm_token_type_ids": (batch.prompt_ids == policy.base.config.image_token_id).int(),
    }


def pictures(*sizes: tuple[int, int]) -> tuple[View, ...]:
    """Views of random pixels, (height, width) each."""
    rng = np.random.default_rng(0)
    return tuple(View(rng.integers(0, 255, size, dtype=np.uint8)) for size in sizes)


def unequal_studies() -> list[Study]:
    """Three studies of one and two images, whose prompts have unequal lengths."""
    return [
        Study("one", pictures((64, 96)), CORPUS[0]),
        Study("two", pictures((96, 64), (64, 64)), CORPUS[1], indication="Cough."),
        Study("wide", pictures((64, 128)), CORPUS[2], indication="Fever and shortness of breath since two days."),
    ]
