"""Writing a policy: as a checkpoint for transformers and vLLM, with the adapter merged into the weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrg.files import write_json
from mrg.modules.policy.lora import adapted_layers, base_model, base_name, has_adapter, is_adapter, weight_update
from mrg.modules.policy.processor import save_processor
from mrg.modules.policy.quantization import is_quantized, load_whole_base
from mrg.modules.policy.ranks import full


def save_merged(model: Any, processor: Any, folder: str | Path, write: bool, sharded: bool, generation: Any) -> None:
    """Write a checkpoint with the adapter merged into the weights, and the processor.

    Args:
        model: A transformers model, or a peft model around one.
        processor: Its processor.
        folder: Folder of the checkpoint.
        write: Whether this rank writes; the others only help to gather sharded weights.
        sharded: Whether layers are sharded over ranks.
        generation: Generation settings to write.

    Raises:
        ValueError: If the base is in 4 bits and its checkpoint cannot be loaded.
    """
    if not (write or sharded):
        return
    own = base_model(model)
    base = load_whole_base(own) if is_quantized(own) else own
    weights = merged_weights(model, write, base) if has_adapter(model) or sharded else None
    if write:
        base.generation_config = generation
        base.save_pretrained(folder, state_dict=weights)
        _set_dtype(base, Path(folder))
        save_processor(processor, folder)


def merged_weights(model: Any, keep: bool, base: Any) -> dict[str, Tensor]:
    """Weights of the transformers model with the adapter's update added, on the CPU; `model` does not change.

    Args:
        model: A transformers model, or a peft model around one.
        keep: False returns nothing, on ranks that only help to gather sharded weights.
        base: The transformers model to merge into: the model's own, or an unquantized copy, which is merged in place
            because two copies of a large model may not fit into memory.
    """
    own = base_model(model)
    weights = {}
    for name, value in base.state_dict().items():
        if not is_adapter(name):
            whole = full(value)
            if keep:
                weights[base_name(name)] = whole.cpu()
    if not keep:
        return weights
    for name, layer in adapted_layers(own).items():
        weight = weights[f"{name}.weight"]
        update = weight_update(model, layer).cpu()
        merged = (weight.to(update.dtype) + update).to(weight.dtype)
        weights[f"{name}.weight"] = merged if base is own else weight.copy_(merged)
    return weights


def merge_note(model: Any, more: bool) -> str:
    """Note in brackets for the line that names a saved policy; empty unless merging rounds its weights.

    Args:
        model: The model that is merged.
        more: Whether the vision tower or the projector is trained, so that the adapter alone is not the whole policy.
    """
    if not has_adapter(model):
        return ""
    base = base_model(model)
    half = base.lm_head.weight.dtype in (torch.bfloat16, torch.float16)  # LoRA never trains the head
    if not half and not is_quantized(base):
        return ""
    exact = "" if more else "; for an exact copy use export --adapter true"
    return f" (merged weights are rounded: not exactly the policy that was scored{exact})"


def _set_dtype(base: Any, folder: Path) -> None:
    """Set `dtype` in a saved config.json to the widest type of the weights, in which they are loaded again.

    transformers writes the type of the first weight, which may be frozen, and would round the others.
    """
    dtypes = {p.dtype for name, p in base.named_parameters() if not is_adapter(name) and p.is_floating_point()}
    if len(dtypes) < 2:
        return
    widest = str(functools.reduce(torch.promote_types, dtypes)).removeprefix("torch.")
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = widest
    write_json(file, config)
