"""Whether a checkpoint, which holds only what is trained, belongs to a policy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mrg.errors import UserError

if TYPE_CHECKING:
    from mrg.modules.policy.load import LoRA


def identity(parameters: Iterable[tuple[str, nn.Parameter]], tokenizer: Any) -> str:
    """What a checkpoint's weights depend on without holding it: the tokenizer and the frozen weights.

    Args:
        parameters: All of the module, with their names.
        tokenizer: The policy's.
    """
    digest = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, parameter in parameters:
        if not parameter.requires_grad:
            start = parameter.detach().flatten()[:64].float().cpu()
            digest.update(name.encode() + start.numpy().tobytes())
    return digest.hexdigest()


def check_fits(
    checkpoint: Mapping[str, Any], source: str, shapes: Mapping[str, torch.Size], own: str, lora: LoRA | None
) -> None:
    """Refuse a checkpoint of another policy.

    Args:
        checkpoint: As it was read.
        source: The policy's name in the settings.
        shapes: Of its trained weights.
        own: Its `identity`.
        lora: Its adapter.

    Raises:
        ValueError: If trained weights are missing, foreign, or made with another tokenizer, base or adapter.
    """
    start = f"The checkpoint does not fit the policy {source!r}:"
    alpha = lora and lora.alpha
    if alpha and (written := checkpoint.get("lora_alpha", alpha)) != alpha:  # earlier ones do not say it
        raise UserError(
            f"{start} its adapter has alpha {written}, model.init_args.lora.alpha is {alpha}. "
            "Use the run's own configuration and data."
        )
    # A checkpoint of one file per rank holds its weights elsewhere.
    given: Mapping[str, Any] = checkpoint.get("state_dict", shapes)
    wrong = sorted(set(shapes) ^ set(given)) or sorted(
        name for name, shape in shapes.items() if "state_dict" in checkpoint and shape != given[name].shape
    )
    if wrong or checkpoint.get("identity") != own:
        name = wrong[0] if wrong else "its tokenizer or frozen base"
        if name in shapes and name in given and ".lora_A." in name:
            rank = shapes[name][0]
            name = f"its adapter has rank {len(given[name])}, model.init_args.lora.rank is {rank}: {name}"
        raise UserError(f"{start} {name} differs. Use the run's own configuration and data.")
