"""Loading a checkpoint as a policy: what is supported, what is missing, what is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mrg.errors import UserError
from mrg.modules.policy.families import FAMILIES, LANGUAGE_LINEARS
from mrg.modules.policy.policy import Policy
from mrg.modules.policy.precision import hold_trained
from mrg.modules.policy.quantization import four_bits, settle
from mrg.modules.prefix.attention import install


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
    shared_prefix: str = "auto",
) -> Policy:
    """Load a checkpoint of one of `FAMILIES`.

    Args:
        path: Hub id or local folder.
        lora: Train adapters of this shape on the language model; `None` trains the language model itself.
        train_vision: Train the vision tower as well.
        dtype: Of the frozen weights: `"float32"`, `"bfloat16"` or `"auto"` for the checkpoint's own. What is trained is
            held in float32, see `mrg.modules.policy.precision`.
        max_pixels: Pixel budget of one image, for a Qwen-VL or an InternVL; 0 keeps the checkpoint's own. The images of
            others have one size.
        gradient_checkpointing: Recompute the language model's activations in the backward pass: less memory, more time.
        load_in_4bit: Hold the frozen language model in 4 bits (QLoRA; Dettmers et al., 2023), see `four_bits`; needs
            `lora` and `pip install 'mrg[qlora]'`. It is meant for a CUDA GPU; a CPU is slow and good for trying out.
        shared_prefix: See `Policy`.

    Raises:
        ValueError: If the checkpoint cannot be found, is not of a supported family, is quantised itself, or lacks
            weights: a tower of random weights would train silently.
    """
    from transformers import AutoModelForImageTextToText

    if dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"Expected model.init_args.dtype to be 'auto', 'float32' or 'bfloat16', but got {dtype!r}.")
    check_shared_prefix(shared_prefix)
    check_frozen(train_vision, "", load_in_4bit, lora)
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    kind = _kind(path)
    options: dict[str, Any] = {"quantization_config": four_bits(kind)} if load_in_4bit else {}
    with _readable(path):
        processor = FAMILIES[kind].load_processor(path, max_pixels)
        model, info = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype if dtype == "auto" else getattr(torch, dtype), output_loading_info=True, **options
        )
    if load_in_4bit:
        settle(model)
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"Policy {path!r} lacks {len(missing)} weights, {missing[0]} first: the checkpoint is incomplete."
        )
    if gradient_checkpointing:
        # On the language model alone: on the whole model it would pull the frozen vision tower into autograd.
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return prepare(model, processor, lora, train_vision, shared_prefix)


def check_shared_prefix(value: str) -> None:
    """Refuse what is not a setting of `Policy`.

    Raises:
        ValueError: If it is unknown.
    """
    if value not in ("auto", "required", "off"):
        raise UserError(f"Expected model.init_args.shared_prefix to be 'auto', 'required' or 'off', but got {value!r}.")


def check_frozen(train_vision: bool, vision_cache: str, load_in_4bit: bool, lora: LoRA | None) -> None:
    """Refuse settings that need frozen weights where these are trained.

    Raises:
        ValueError: If there are any.
    """
    if vision_cache and train_vision:
        raise UserError("A trained vision tower has nothing to keep: set model.init_args.vision_cache to ''.")
    if load_in_4bit and lora is None:
        raise UserError("Weights in 4 bits cannot be trained: set model.init_args.lora, or load_in_4bit to false.")


def _kind(path: str) -> str:
    """The family of a checkpoint, a key of `FAMILIES`."""
    if path.startswith((".", "/", "runs/")) or Path(path).exists():
        config = Path(path) / "config.json"
        if not config.is_file():
            raise UserError(
                f"Policy {path!r} is not a checkpoint: {config} does not exist. Check model.init_args.policy."
            )
        found = json.loads(config.read_text(encoding="utf-8"))
    else:
        with _readable(path):
            from transformers import AutoConfig

            found = AutoConfig.from_pretrained(path).to_dict()
    kind = found.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"Policy {path!r} is of type {kind!r}; supported are {', '.join(FAMILIES)}.")
    if found.get("quantization_config"):
        raise UserError(
            f"Policy {path!r} holds quantised weights, into which no adapter can be merged: name the checkpoint that "
            "they were made from, and set model.init_args.load_in_4bit to true."
        )
    return str(kind)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn what transformers says of a checkpoint into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Policy {path!r} cannot be loaded ({reason}). Check model.init_args.policy.") from None


def prepare(model: Any, processor: Any, lora: LoRA | None, train_vision: bool, shared_prefix: str = "auto") -> Policy:
    """Wrap a model: add the adapter where there is one, freeze what is not trained, hold the rest in float32."""
    model.config.use_cache = False
    install(model.model.language_model)
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        shape = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=LANGUAGE_LINEARS
        )
        model = get_peft_model(model, shape)
    policy = Policy(model, processor, train_vision, shared_prefix)
    for name, parameter in policy.named_parameters():
        if any(f".{module}." in name for module in policy.family.vision):
            parameter.requires_grad_(train_vision)
    hold_trained(policy.parameters())
    # A loaded model is in eval mode, in which gradient checkpointing and dropout are off; Lightning leaves it there.
    policy.train()
    return policy
