"""Tiny random checkpoints of all families; all but the Qwen-VL ones have the files of published checkpoints."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.families import CORPUS, QWEN, family_policy

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WINDOW = 24
"""Of the tiny Gemma's local layers: shorter than its prompts."""


def save_checkpoint(kind: str, folder: Path, dtype: torch.dtype = torch.float32, **text) -> str:
    """Write a checkpoint of any family, see `family_policy` and `save_family`; returns its folder."""
    if kind in QWEN:
        family_policy(kind, dtype=dtype, **text).to(dtype).save(folder)  # what is trained is held in float32
        return str(folder)
    from transformers import AutoModelForImageTextToText

    save_family(kind, folder, list(CORPUS), **text)
    if dtype != torch.float32:
        AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    return str(folder)


def save_family(kind: str, folder: Path, corpus: list[str], **text) -> str:
    """Write a checkpoint of random weights, sharp enough that a wrong mask or position would show.

    Args:
        kind: One of `BUILDERS`.
        folder: Where to.
        corpus: What the tokenizer is made from.
        **text: Other settings of the language model's configuration.
    """
    tokenizer, image_processor, processor, config = BUILDERS[kind](corpus)
    for name, value in text.items():
        setattr(config.text_config, name, value)
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2 if parameter.ndim > 1 else 0.1)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    if kind == "gemma3":
        model.generation_config.eos_token_id.append(tokenizer.convert_tokens_to_ids("<end_of_turn>"))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, value in (("preprocessor_config.json", image_processor), ("processor_config.json", processor)):
        (folder / name).write_text(json.dumps(value))
    return str(folder)


def _tokenizer(corpus: list[str], special: list[str], template: str, named: dict[str, str], **kwargs):
    """A tokenizer that starts a text with its `bos_token` where it has one, as those of Llama and Gemma do."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    start = kwargs.get("bos_token")
    if start:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, bpe.token_to_id(start))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, extra_special_tokens=named, **kwargs)
    tokenizer.chat_template = template
    return tokenizer


def _text(tokenizer, vocab_size: int, **kwargs) -> dict:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **kwargs,
    }


VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


def _gemma3(corpus: list[str]):
    from transformers import Gemma3Config

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(
        corpus, [*special, *named.values()], GEMMA_TEMPLATE, named, bos_token="<bos>", eos_token="<eos>",
        pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text = _text(
        tokenizer, len(tokenizer) + 5, num_hidden_layers=3, layer_types=kinds, sliding_window=WINDOW,
        query_pre_attn_scalar=24, rope_theta=1000.0, rope_local_base_freq=100.0,
    )  # fmt: skip
    ids = {f"{name}_index": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    config = Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **ids)
    image = {
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 4,
        "processor_class": "Gemma3Processor",
        "size": {"height": 56, "width": 56},
    }
    return tokenizer, image, {"image_seq_length": 4, "processor_class": "Gemma3Processor"}, config


def _llava(corpus: list[str], text_type: str = "llama"):
    from transformers import LlavaConfig

    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    tokenizer = _tokenizer(
        corpus, special, LLAVA_TEMPLATE, {}, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    text = _text(tokenizer, len(tokenizer) + 7, num_hidden_layers=2, model_type=text_type)
    if text_type == "mistral":
        text["sliding_window"] = WINDOW
    vision, strategy = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}, "default"
    image = {
        "crop_size": {"height": 56, "width": 56},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": 56},
    }
    if text_type == "qwen2":
        vision, strategy = {"model_type": "siglip_vision_model", **VISION}, "full"
        image = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 56, "width": 56}}
        text |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
        del text["head_dim"]
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        vision_feature_select_strategy=strategy,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    processor = {
        "image_token": "<image>",
        "num_additional_image_tokens": int(strategy == "default"),
        "patch_size": 14,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": strategy,
    }
    return tokenizer, image, processor, config


def _fast_vlm(corpus: list[str], text_type: str = "qwen2"):
    from transformers import FastVlmConfig

    special = ["<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<pad>"]
    marks = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = _tokenizer(corpus, special, LLAVA_TEMPLATE, {}, **marks)
    text = _text(tokenizer, len(tokenizer) + 7, num_hidden_layers=2, model_type=text_type)
    if text_type == "qwen2":
        del text["head_dim"]
    widths = [8, 8, 16, 16]
    config = FastVlmConfig(
        text_config=text,
        vision_config={
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": widths,
            "depths": [1] * 4,
            "layer_type": "basic",
            "hidden_size": 16,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    image = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}}
    processor = {
        "image_token": "<image>",
        "num_additional_image_tokens": 0,
        "patch_size": 32,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "full",
    }
    return tokenizer, image, processor, config


def _internvl(corpus: list[str], text_type: str = "qwen2"):
    from transformers import InternVLConfig

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    named = {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(
        corpus, [*special, *named.values()], INTERNVL_TEMPLATE, named, eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )  # fmt: skip
    text = _text(tokenizer, len(tokenizer) + 3, num_hidden_layers=2, model_type=text_type)
    if text_type == "qwen2":
        del text["head_dim"]
    config = InternVLConfig(
        text_config=text,
        vision_config=VISION,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    image = {
        "crop_to_patches": False,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "image_processor_type": "GotOcr2ImageProcessor",
        "max_patches": 3,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "size": {"height": 56, "width": 56},
    }
    return tokenizer, image, {"image_seq_length": 4, "processor_class": "InternVLProcessor"}, config


BUILDERS = {
    "internvl": _internvl,
    "internvl-qwen3": lambda corpus: _internvl(corpus, "qwen3"),
    "gemma3": _gemma3,
    "fast_vlm": _fast_vlm,
    "fast_vlm-llama": lambda corpus: _fast_vlm(corpus, "llama"),
    "llava": _llava,
    "llava-mistral": lambda corpus: _llava(corpus, "mistral"),
    "llava-qwen2": lambda corpus: _llava(corpus, "qwen2"),
}
