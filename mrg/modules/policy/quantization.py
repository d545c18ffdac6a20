"""QLoRA: an adapter on a frozen language model in 4 bits (Dettmers et al., 2023); every access to bitsandbytes.

Choices: NF4 with double quantization. The layers that LoRA adapts are quantized, and no others: vision tower,
projector, embedding and head are not. A layer computes in the precision of its original weights. Nothing is merged into
4-bit weights: what is saved is the unquantized base with the adapter's update added.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from typing import Any

import torch
from packaging.version import Version
from torch import nn

from mrg.errors import MissingPackageError, UserError, install
from mrg.modules.policy.families import FAMILIES, LANGUAGE_LINEARS
from mrg.modules.policy.lora import is_adapter

OLDEST = "0.46.1"
"""Oldest release of bitsandbytes that transformers supports and that has NF4 on a CPU; also in the extra `qlora`."""


def quantization_config(kind: str) -> Any:
    """Configuration with which transformers quantizes the language model of a checkpoint on loading.

    Raises:
        ValueError: If bitsandbytes is missing or too old.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(f"model.init_args.load_in_4bit needs bitsandbytes: {install('qlora')}")
    version = importlib.metadata.version("bitsandbytes")
    if Version(version) < Version(OLDEST):
        raise MissingPackageError(
            f"model.init_args.load_in_4bit needs bitsandbytes {OLDEST} or newer, but {version} is installed: "
            f"{install('qlora')}"
        )
    from transformers import BitsAndBytesConfig

    # Patterns that transformers matches at the start of a module's full path: a bare name would skip nothing.
    whole = [rf"model\.{name}" for name in FAMILIES[kind].vision]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,  # until `prepare_quantized`
        llm_int8_skip_modules=[*whole, "lm_head"],
    )


def check_device(device: torch.device) -> None:
    """Reject devices on which QLoRA has not been tested.

    Raises:
        ValueError: If the device is neither a CUDA GPU nor a CPU.
    """
    if device.type not in ("cuda", "cpu"):
        raise UserError(
            f"model.init_args.load_in_4bit runs on a CUDA GPU or a CPU, but trainer.accelerator chose {device.type}: "
            "set load_in_4bit to false, or trainer.accelerator to cpu."
        )


def prepare_quantized(model: Any) -> None:
    """Check which layers of a loaded model are in 4 bits, and prepare them for training.

    Raises:
        ValueError: If the layers in 4 bits are not exactly those that LoRA adapts.
    """
    from bitsandbytes.nn import Linear4bit

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantised = {name: module for name, module in linears.items() if isinstance(module, Linear4bit)}
    wrong = sorted({name for name in linears if re.fullmatch(LANGUAGE_LINEARS, name)} ^ set(quantised))
    if wrong:
        raise UserError(
            f"Expected the layers that LoRA adapts to be in 4 bits, and no others, but {len(wrong)} differ, such as "
            f"{wrong[0]}. This release of transformers is not supported with model.init_args.load_in_4bit: set it to "
            "false."
        )
    for module in quantised.values():
        # With another compute type than the weights had, a layer would also round its bias permanently.
        module.compute_dtype, module.compute_type_is_set = module.weight.quant_state.dtype, True
        # On a CPU with AVX512-BF16, a forward pass in eval mode would repack the weights for a kernel without a
        # backward pass that rounds their scales: after the first rollout, gradients would stop at the last layer.
        module.support_avx512bf16_for_cpu = False


def is_quantized(base: Any) -> bool:
    """Whether a transformers model was loaded in 4 bits."""
    return bool(getattr(base, "is_loaded_in_4bit", False))


def load_whole_base(base: Any) -> Any:
    """Load the checkpoint of a model in 4 bits without quantization, on the CPU.

    Weights that are trained besides the adapter, such as those of the vision tower, are taken from the model.

    Raises:
        ValueError: If the checkpoint cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText

    source = base.name_or_path
    try:
        # The type of the head, which is never trained here: the model's `dtype` may be that of a trained vision tower.
        dtype = base.lm_head.weight.dtype
        whole = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, device_map="cpu")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The base {source!r}, into which the adapter is merged, cannot be loaded ({reason}): restore it, or write "
            "the adapter alone with export --adapter true."
        ) from None
    trained = {n: p.detach().cpu() for n, p in base.named_parameters() if p.requires_grad and not is_adapter(n)}
    for name, parameter in whole.named_parameters():
        if name in trained:  # in float32
            parameter.data = trained[name]
    return whole
