"""Loading a checkpoint as a policy: what is supported, what is missing, what is trained."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from mrg.modules.attention import install
from mrg.modules.policy import Policy
from mrg.modules.processor import StillImageProcessor, load_processor

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Types of checkpoints whose prompts can be shared: causal attention in every layer, explicit positions."""
LANGUAGE_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclasses.dataclass
class LoRA:
    """Low-rank adapters on every linear layer of the language model (Hu et al., 2021).

    Args:
        rank: Rank of the update.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Dropout on the adapter's input. 0 keeps rollout and training distributions equal.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


def load_policy(
    path: str,
    lora: LoRA | None = None,
    train_vision: bool = False,
    dtype: str = "auto",
    max_pixels: int = 0,
    gradient_checkpointing: bool = False,
    load_in_4bit: bool = False,
) -> Policy:
    """Load a checkpoint of one of `FAMILIES`.

    Args:
        path: Hub id or local folder.
        lora: Train adapters of this shape on the language model; `None` trains the language model itself.
        train_vision: Train the vision tower as well.
        dtype: `"float32"`, `"bfloat16"` or `"auto"` for the checkpoint's own.
        max_pixels: Pixel budget of one image; 0 keeps the checkpoint's own.
        gradient_checkpointing: Recompute the language model's activations in the backward pass: less memory, more time.
        load_in_4bit: Hold the frozen language model in 4 bits (QLoRA; Dettmers et al., 2023); needs `lora`, a CUDA GPU
            and `pip install 'mrg[qlora]'`.

    Raises:
        ValueError: If the checkpoint cannot be found or lacks weights: a tower of random weights would train silently.
    """
    from transformers import AutoModelForImageTextToText

    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"Expected model.init_args.dtype to be 'auto', 'float32' or 'bfloat16', but got {dtype!r}.")
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    if path.startswith((".", "/", "runs/")) or Path(path).exists():
        config = Path(path) / "config.json"
        if not config.is_file():
            raise ValueError(
                f"Policy {path!r} is not a checkpoint: {config} does not exist. Check model.init_args.policy."
            )
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if kind not in FAMILIES:
            raise ValueError(f"Policy {path!r} is of type {kind!r}; expected {' or '.join(FAMILIES)} in {config}.")
    options: dict[str, Any] = {"quantization_config": four_bits(lora)} if load_in_4bit else {}
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype if dtype == "auto" else getattr(torch, dtype), output_loading_info=True, **options
        )
        processor = load_processor(path, max_pixels)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Policy {path!r} cannot be loaded ({reason}). Check model.init_args.policy.") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"Policy {path!r} lacks {len(missing)} weights, {missing[0]} first: the checkpoint is incomplete."
        )
    if gradient_checkpointing:
        # On the language model alone: on the whole model it would pull the frozen vision tower into autograd.
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return prepare(model, processor, lora, train_vision)


def four_bits(lora: LoRA | None) -> Any:
    """Settings of QLoRA: NF4 with double quantisation, computing in bfloat16; the vision tower and the head stay whole.

    Raises:
        ValueError: If there is no adapter, no GPU, or no bitsandbytes.
    """
    if lora is None:
        raise ValueError("Weights in 4 bits cannot be trained: set model.init_args.lora, or load_in_4bit to false.")
    if not torch.cuda.is_available():
        raise ValueError("model.init_args.load_in_4bit needs a CUDA GPU, and there is none: set it to false.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("model.init_args.load_in_4bit needs bitsandbytes: pip install 'mrg[qlora]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["visual", "lm_head"],
    )


def prepare(model: Any, processor: StillImageProcessor, lora: LoRA | None, train_vision: bool) -> Policy:
    """Wrap a model: add the adapter where there is one, and freeze what is not trained.

    Raises:
        ValueError: If a layer attends to a sliding window: shared attention knows none.
    """
    windows = sum(kind != "full_attention" for kind in getattr(model.config.text_config, "layer_types", None) or ())
    if windows:
        raise ValueError(
            f"The policy has {windows} layers of sliding-window attention, which cannot share a prompt: set "
            "text_config.use_sliding_window to false in its config.json."
        )
    model.config.use_cache = False
    install(model.model.language_model)
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        shape = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=LANGUAGE_LINEARS
        )
        model = get_peft_model(model, shape)
    policy = Policy(model, processor, train_vision)
    for name, parameter in policy.named_parameters():
        if ".visual." in name:
            parameter.requires_grad_(train_vision)
    # A loaded model is in eval mode, in which gradient checkpointing and dropout are off; Lightning leaves it there.
    policy.train()
    return policy
