"""QLoRA: the frozen language model in 4 bits, an adapter beside it (Dettmers et al., 2023).

Choices: NF4 with double quantisation; the layers that LoRA adapts are quantised and no others, so that the vision
tower, its projector, the embedding and the head stay whole; a layer computes in the precision that its weights had.
Nothing is ever merged into 4 bits: what is saved is the whole base with the adapter's update added.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from typing import Any

import torch
from packaging.version import Version
from torch import nn

from mrg.errors import UserError
from mrg.modules.policy.families import FAMILIES, LANGUAGE_LINEARS

OLDEST = "0.46.1"
"""The first release of bitsandbytes that transformers takes and that has NF4 on a CPU; also in the extra `qlora`."""


def four_bits(kind: str) -> Any:
    """Settings with which transformers quantises a checkpoint's language model as it loads it.

    Args:
        kind: A key of `FAMILIES`.

    Raises:
        ValueError: If bitsandbytes is missing or too old.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("model.init_args.load_in_4bit needs bitsandbytes: pip install 'mrg[qlora]'")
    version = importlib.metadata.version("bitsandbytes")
    if Version(version) < Version(OLDEST):
        raise UserError(
            f"model.init_args.load_in_4bit needs bitsandbytes {OLDEST} or newer, but {version} is installed: "
            "pip install -U 'mrg[qlora]'"
        )
    from transformers import BitsAndBytesConfig

    # transformers takes these for patterns that a module's whole path starts with, so that a bare name skips nothing.
    whole = [rf"model\.{name}" for name in FAMILIES[kind].vision]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,  # until `settle`
        llm_int8_skip_modules=[*whole, "lm_head"],
    )


def check_device(device: torch.device) -> None:
    """Refuse to train weights in 4 bits where that has not been seen to work.

    Raises:
        ValueError: If the device is neither a CUDA GPU nor a CPU.
    """
    if device.type not in ("cuda", "cpu"):
        raise UserError(
            f"model.init_args.load_in_4bit runs on a CUDA GPU or a CPU, but trainer.accelerator chose {device.type}: "
            "set load_in_4bit to false, or trainer.accelerator to cpu."
        )


def settle(model: Any) -> None:
    """Check which layers of a loaded model are in 4 bits, and make them fit for training.

    Args:
        model: As transformers has loaded it with `four_bits`.

    Raises:
        ValueError: If other layers than those that LoRA adapts are in 4 bits, or some of these are not.
    """
    from bitsandbytes.nn import Linear4bit

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantised = {name: module for name, module in linears.items() if isinstance(module, Linear4bit)}
    wrong = sorted({name for name in linears if re.fullmatch(LANGUAGE_LINEARS, name)} ^ set(quantised))
    if wrong:
        raise UserError(
            f"Expected the layers that LoRA adapts to be in 4 bits, and no others, but {len(wrong)} differ, {wrong[0]} "
            "first: this release of transformers is not supported with model.init_args.load_in_4bit, set it to false."
        )
    for module in quantised.values():
        # In another precision than the weights', a layer would also round its bias for good.
        module.compute_dtype, module.compute_type_is_set = module.weight.quant_state.dtype, True
        # On a CPU with AVX512-BF16, a forward pass in eval mode would rearrange the weights for a kernel that has no
        # backward pass and rounds their scales: after the first rollout, gradients would end at the last layer.
        module.support_avx512bf16_for_cpu = False


def whole_base(base: Any) -> Any:
    """The checkpoint that a model in 4 bits was loaded from, in the model's precision, on the CPU.

    Weights that are trained beside the adapter, such as the vision tower's, are the model's own.

    Args:
        base: A transformers model in 4 bits.

    Raises:
        ValueError: If the checkpoint is no longer there.
    """
    from transformers import AutoModelForImageTextToText

    source = base.name_or_path
    try:
        # By its head, which is never trained in 4 bits: the model's own `dtype` may be a trained vision tower's.
        dtype = base.lm_head.weight.dtype
        whole = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, device_map="cpu")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The base {source!r}, into which the adapter is merged, cannot be loaded again ({reason}): put it back, "
            "or write the adapter alone (export --adapter true)."
        ) from None
    trained = {n: p.detach().cpu() for n, p in base.named_parameters() if p.requires_grad and ".lora_" not in n}
    for name, parameter in whole.named_parameters():
        if name in trained:  # in the precision in which it was trained
            parameter.data = trained[name]
    return whole
