"""The LoRA adapter (Hu et al., 2021): its settings, and every access to peft's layers."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from torch import Tensor, nn


@dataclasses.dataclass
class LoRA:
    """Low-rank adapters on every linear layer of the language model.

    Args:
        rank: Rank of the update.
        alpha: Scale of the update, which is multiplied by alpha / rank.
        dropout: Dropout on the adapter's input; 0 keeps the rollout and training distributions equal.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


def add_adapter(model: Any, lora: LoRA, layers: str) -> Any:
    """Wrap a transformers model in a peft model with a new adapter.

    Args:
        model: The transformers model.
        lora: Shape of the adapter.
        layers: Regular expression for the full names of the adapted layers.
    """
    from peft import LoraConfig, get_peft_model

    shape = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers)
    return get_peft_model(model, shape)


def merge_saved(model: Any, folder: str) -> Any:
    """Merge an adapter in a folder into a transformers model, all of whose weights are trainable afterwards."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).merge_and_unload().requires_grad_(True)


def has_adapter(model: Any) -> bool:
    """Whether a model is wrapped by peft."""
    return hasattr(model, "get_base_model")


def base_model(model: Any) -> Any:
    """The transformers model, without the peft model around it."""
    return model.get_base_model() if has_adapter(model) else model


def adapter_off(model: Any) -> contextlib.AbstractContextManager[None]:
    """Context in which a peft model computes without its adapter."""
    context: contextlib.AbstractContextManager[None] = model.disable_adapter()
    return context


def is_adapter(name: str) -> bool:
    """Whether a parameter or buffer of this name belongs to an adapter."""
    return ".lora_" in name


def base_name(name: str) -> str:
    """Name that a parameter of an adapted model has in the transformers model without an adapter."""
    return name.replace(".base_layer.", ".")


def adapted_layers(base: Any) -> dict[str, Any]:
    """Layers with an adapter, by their names in the transformers model."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}


def base_weight(layer: Any) -> nn.Parameter:
    """Weight of an adapted layer, without the adapter's update."""
    weight: nn.Parameter = layer.get_base_layer().weight
    return weight


def weight_update(model: Any, layer: Any) -> Tensor:
    """The adapter's update of a layer's weight, scale included."""
    update: Tensor = layer.get_delta_weight(model.active_adapter)
    return update.detach()


def adapter_matrices(layer: Any) -> list[nn.Linear]:
    """The matrices A and B of a layer's adapters."""
    return [*layer.lora_A.values(), *layer.lora_B.values()]


def largest_rank(model: Any) -> int:
    """Largest rank of the adapters of a model."""
    return max(int(config.r) for config in model.peft_config.values())
