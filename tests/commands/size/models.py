"""Random models in the published architecture whose shape is given."""

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mrg.modules.policy.load import prepare
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.processor import build_processor
from mrg.modules.prefix.packing import Prompts


def build(
    width,
    inner,
    heads,
    kv_heads,
    num_layers=3,
    rank=4,
    dtype=torch.float32,
    checkpointing=False,
    vision=None,
    train_vision=False,
):
    """A policy whose language model is trained, by an adapter or whole."""
    processor = build_processor(["The heart is enlarged."] * 4, 500)
    tokenizer, third = processor.tokenizer, width // heads // 6
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": num_layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [width // heads // 2 - 2 * third, third, third],
        },
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "use_sliding_window": False, "tie_word_embeddings": False,
    }  # fmt: skip
    tower = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, **(vision or {})}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**tower, "out_hidden_size": width},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    if checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return prepare(model, processor, LoRA(rank) if rank else None, train_vision)


def prompts(policy, number, length):
    """Prompts of random embeddings in the embedding's precision, which need a gradient where it is trained."""
    dtype = policy.base.get_input_embeddings().weight.dtype
    embeds = torch.randn(number, length, policy.base.config.text_config.hidden_size, dtype=dtype)
    places = torch.arange(length).expand(3, number, length).contiguous()
    mask = torch.ones(number, length, dtype=torch.bool)
    embeds.requires_grad_(not policy.has_adapter)
    return Prompts(embeds, mask, places, torch.zeros_like(mask))
