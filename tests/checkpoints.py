"""A tiny random checkpoint in the format in which the 7B models of the Qwen2.5-VL family are published."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mrg.modules.policy.tiny import Tiny, tiny_policy


def save_published_format(folder: Path, corpus: list[str]) -> None:
    """Flat configuration, old weight names, untied head, bfloat16, two shards, the old processor's settings."""
    torch.manual_seed(0)
    policy = tiny_policy(corpus, Tiny(64, vision_depth=2, vocab_size=500, merge_size=2, init_std=0.05))
    policy.processor.tokenizer.save_pretrained(folder)
    _write(folder / "config.json", _config(policy.base.config))
    size = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    image = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    _write(folder / "preprocessor_config.json", {**size, **image})
    weights = {}
    for name, value in policy.base.state_dict().items():
        old = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        weights[old] = value.detach().to(torch.bfloat16).clone()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    _write(folder / "model.safetensors.index.json", index)


def _config(config) -> dict:
    text, vision = config.text_config, config.vision_config
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": text.num_hidden_layers,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": text.eos_token_id,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        **{
            name: getattr(text, name)
            for name in (
                "hidden_act",
                "hidden_size",
                "intermediate_size",
                "max_position_embeddings",
                "num_attention_heads",
                "num_hidden_layers",
                "num_key_value_heads",
                "rms_norm_eps",
                "vocab_size",
            )
        },
        "vision_config": {
            "depth": vision.depth,
            "hidden_act": "silu",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "in_chans": 3,
            "out_hidden_size": vision.out_hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
    }


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
