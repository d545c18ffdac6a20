"""Loading a checkpoint as a policy, and checking that a run's checkpoint belongs to it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.log import log
from mrg.modules.policy.families import FAMILIES, LANGUAGE_LINEARS
from mrg.modules.policy.lora import LoRA, add_adapter, merge_saved
from mrg.modules.policy.policy import Policy, SharedPrefix
from mrg.modules.policy.precision import hold_trained
from mrg.modules.policy.processor import close_think, special_tags
from mrg.modules.policy.quantization import prepare_quantized, quantization_config
from mrg.modules.policy.smollm import with_smollm2
from mrg.modules.prefix.attention import install_attention

DType = Literal["auto", "float32", "bfloat16"]
"""Type of frozen weights; `"auto"` is that of the checkpoint."""
LanguageModel = Literal["", "smollm2"]
"""Language model in place of the checkpoint's; empty keeps the checkpoint's."""


def load_policy(
    path: str,
    lora: LoRA | None = None,
    train_vision: bool = False,
    dtype: DType = "auto",
    max_pixels: int = 0,
    gradient_checkpointing: bool = False,
    load_in_4bit: bool = False,
    shared_prefix: SharedPrefix = "auto",
    language_model: LanguageModel = "",
) -> Policy:
    """Load a checkpoint of one of `FAMILIES`.

    Args:
        path: Hub id or local folder.
        lora: Shape of the adapter to train; None trains the weights of the language model.
        train_vision: Train the vision tower as well.
        dtype: Type of the frozen weights; trained weights are held in float32.
        max_pixels: Pixel budget of one image, for Qwen-VL and InternVL; 0 uses the checkpoint's own.
        gradient_checkpointing: Recompute the language model's activations in the backward pass, to save memory.
        load_in_4bit: Hold the frozen language model in 4 bits (QLoRA; Dettmers et al., 2023). Requires `lora`.
        shared_prefix: When a prompt is read once for all of its completions.
        language_model: `"smollm2"` puts SmolLM2 in place of a FastVLM's and trains a new projector.

    Raises:
        ValueError: If the checkpoint cannot be found or read, is not of a supported family, is already quantized, or
            lacks weights, which would otherwise be trained from random values.
    """
    from transformers import AutoModelForImageTextToText

    _check_choices(dtype, shared_prefix, language_model)
    check_frozen(train_vision, "", load_in_4bit, lora, language_model)
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    kind = _family(path)
    has_adapter = _check_adapter(path, load_in_4bit)
    options: dict[str, Any] = {"quantization_config": quantization_config(kind)} if load_in_4bit else {}
    with _readable(path):
        processor = FAMILIES[kind].load_processor(path, max_pixels)
        close_think(processor)
        with _without_adapter(path, has_adapter) as folder:
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), output_loading_info=True, **options
            )
    if has_adapter:
        model = merge_saved(model, path)
    if language_model:
        model, processor = with_smollm2(model, processor)
    if load_in_4bit:
        prepare_quantized(model)
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"The checkpoint {path!r} is incomplete: it lacks {len(missing)} weights, the first of which is "
            f"{missing[0]}. Check model.init_args.policy."
        )
    _warn_special_tags(processor.tokenizer, path)
    if gradient_checkpointing:
        # On the language model alone: on the whole model it would pull the frozen vision tower into autograd.
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return prepare(model, processor, lora, train_vision, shared_prefix, bool(language_model))


def _check_choices(dtype: str, shared_prefix: str, language_model: str) -> None:
    for name, value, choices in (
        ("dtype", dtype, DType),
        ("shared_prefix", shared_prefix, SharedPrefix),
        ("language_model", language_model, LanguageModel),
    ):
        if value not in get_args(choices):
            *most, last = map(repr, get_args(choices))
            raise UserError(f"Expected model.init_args.{name} to be {', '.join(most)} or {last}, but got {value!r}.")


def _warn_special_tags(tokenizer: Any, path: str) -> None:
    if tags := special_tags(tokenizer):
        log.warning(
            f"{', '.join(tags)} are special tokens of the policy {path!r}, which are never sampled: SFT teaches them "
            "as ordinary text, and without SFT the policy does not write valid completions."
        )


def prepare(
    model: Any,
    processor: Any,
    lora: LoRA | None,
    train_vision: bool,
    shared_prefix: SharedPrefix = "auto",
    train_projector: bool = False,
) -> Policy:
    """Make a policy of a transformers model: add an adapter, freeze what is not trained, hold the rest in float32.

    Args:
        model: A transformers model of one of `FAMILIES`.
        processor: Its processor.
        lora: Shape of the adapter; None trains the weights of the language model.
        train_vision: Train the vision tower as well.
        shared_prefix: When a prompt is read once for all of its completions.
        train_projector: Train the projector of a FastVLM as well.
    """
    model.config.use_cache = False
    install_attention(model.model.language_model)
    if lora is not None:
        model = add_adapter(model, lora, LANGUAGE_LINEARS)
    policy = Policy(model, processor, train_vision, shared_prefix, train_projector)
    for name, parameter in policy.named_parameters():
        if any(f".{module}." in name for module in policy.family.vision):
            parameter.requires_grad_(train_vision)
        elif train_projector and ".multi_modal_projector." in name:
            parameter.requires_grad_(True)  # an adapter has frozen it
    hold_trained(policy)
    # A loaded model is in eval mode, in which gradient checkpointing and dropout are off; Lightning does not change it.
    policy.train()
    return policy


def check_frozen(
    train_vision: bool, vision_cache: str, load_in_4bit: bool, lora: LoRA | None, language_model: LanguageModel = ""
) -> None:
    """Reject settings that require frozen weights if these are trained, or a language model that they do not fit.

    Raises:
        ValueError: If there are any.
    """
    if vision_cache and train_vision:
        raise UserError("vision_cache requires a frozen vision tower: set model.init_args.vision_cache to ''.")
    if load_in_4bit and lora is None:
        raise UserError("4-bit weights cannot be trained: set model.init_args.lora, or load_in_4bit to false.")
    if language_model and load_in_4bit:
        raise UserError("load_in_4bit does not support language_model: set one of them to its default.")


def _family(path: str) -> str:
    """Type of a checkpoint, a key of `FAMILIES`."""
    if path.startswith((".", "/", "runs/")) or Path(path).exists():
        config = Path(path) / "config.json"
        if not config.is_file() and (Path(path) / "adapter_config.json").is_file():
            raise UserError(
                f"Policy {path!r} is an adapter without the weights of its base. Merge it into the base with peft's "
                "merge_and_unload, save both model and processor, and set model.init_args.policy to that folder."
            )
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
            f"Policy {path!r} is quantized, so that no adapter can be merged into it. Set model.init_args.policy to "
            "the checkpoint that it was made from, and load_in_4bit to true."
        )
    return str(kind)


def _check_adapter(path: str, load_in_4bit: bool) -> bool:
    """Whether a local folder has an adapter next to full weights; logs a warning that it is merged into them.

    Raises:
        UserError: If it cannot be merged, because the weights are to be held in 4 bits.
    """
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        return False
    what = f"Policy {path!r} has an adapter ({file.name}) next to full weights"
    if load_in_4bit:
        raise UserError(f"{what}, which cannot be merged into 4-bit weights: merge it first, or remove its files.")
    log.warning(
        f"{what}: it is merged into them, because transformers loads both. If the weights contain the adapter already, "
        f"remove {file.name}."
    )
    return True


@contextlib.contextmanager
def _without_adapter(path: str, has_adapter: bool) -> Iterator[str]:
    """A folder with the files of a checkpoint but not its adapter: transformers would add the adapter's layers."""
    if not has_adapter:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in Path(path).iterdir():
            if not file.name.startswith("adapter_"):
                (Path(folder) / file.name).symlink_to(file.resolve())
        yield folder


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn errors of transformers about a checkpoint into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Policy {path!r} cannot be loaded ({reason}). Check model.init_args.policy.") from None


def policy_digest(parameters: Iterable[tuple[str, Tensor]], tokenizer: Any) -> str:
    """Digest of what a run's checkpoint depends on but does not contain: the tokenizer and the frozen weights.

    Args:
        parameters: All parameters of the module, with their names.
        tokenizer: The policy's tokenizer.
    """
    digest = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, parameter in parameters:
        if not parameter.requires_grad:
            start = parameter.detach().flatten()[:64].float().cpu()
            digest.update(name.encode() + start.numpy().tobytes())
    return digest.hexdigest()


def check_checkpoint(
    checkpoint: Mapping[str, Any], source: str, shapes: Mapping[str, torch.Size], digest: str, lora: LoRA | None
) -> None:
    """Reject a run's checkpoint that belongs to another policy.

    Raises:
        ValueError: If trained weights are missing or unexpected, or the tokenizer, base or adapter differs.
    """
    start = f"The checkpoint does not fit the policy {source!r}:"
    alpha = lora and lora.alpha
    if alpha and (written := checkpoint.get("lora_alpha", alpha)) != alpha:  # older checkpoints lack it
        raise UserError(
            f"{start} its adapter has alpha {written}, but model.init_args.lora.alpha is {alpha}. "
            "Use the run's own configuration and data."
        )
    # A sharded checkpoint has its weights in separate files.
    given: Mapping[str, Any] = checkpoint.get("state_dict", shapes)
    wrong = sorted(set(shapes) ^ set(given)) or sorted(
        name for name, shape in shapes.items() if "state_dict" in checkpoint and shape != given[name].shape
    )
    if wrong or checkpoint.get("identity") != digest:
        name = wrong[0] if wrong else "its tokenizer or frozen base"
        if name in shapes and name in given and ".lora_A." in name:
            rank = shapes[name][0]
            name = f"its adapter has rank {len(given[name])}, but model.init_args.lora.rank is {rank}: {name}"
        raise UserError(f"{start} {name} differs. Use the run's own configuration and data.")
