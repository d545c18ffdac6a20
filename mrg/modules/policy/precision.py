"""In which precision a run computes, what it trains is held, and what it leaves behind is read again.

Choices: what is trained is held in float32 (master weights; Micikevicius et al., "Mixed precision training", 2018),
because most steps of an optimiser are too small for bfloat16, in which the neighbour of 1 is 1 + 1/128; so are its
gradients and Adam's moments. Frozen weights stay in `dtype`. Products are computed in bfloat16 under `bf16-mixed`.
Left out: float16, whose gradients must be scaled, and pure bfloat16.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mrg.errors import UserError
from mrg.files import write_json

if TYPE_CHECKING:
    from mrg.modules.policy.policy import Policy

PRECISIONS = {"32-true": False, "32": False, "bf16-mixed": True, "bf16": True}
"""What `trainer.precision` may be, also by Lightning's short names -> whether products are computed in bfloat16."""


def check_precision(precision: Any) -> None:
    """Refuse a precision in which a run fails, or in which its small steps round away.

    Raises:
        ValueError: If it is none of `PRECISIONS`.
    """
    if str(precision) not in PRECISIONS:
        raise UserError(f"Expected trainer.precision to be 'bf16-mixed' or '32-true', but got {str(precision)!r}.")


def hold_trained(parameters: Iterable[nn.Parameter]) -> None:
    """Hold what is trained in float32 at least; what is frozen stays as it is."""
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def rounding(policy: Policy) -> str:
    """What to add to the line that names a merged policy, where it is not quite the one that was scored.

    Args:
        policy: That was merged, with the adapter still beside its base.

    Returns:
        A remark in brackets; empty where nothing was rounded.
    """
    if not policy.has_adapter:
        return ""
    half = policy.base.lm_head.weight.dtype in (torch.bfloat16, torch.float16)  # the head is never trained beside LoRA
    if not half and not getattr(policy.base, "is_loaded_in_4bit", False):
        return ""
    exact = "" if policy.train_vision else "; exact: export --adapter true"
    return f" (merged by rounding, not quite what was scored{exact})"


def name_precision(base: Any, folder: Path) -> None:
    """Name the widest precision of a saved model's weights in its config.json, by which it is loaded again.

    transformers names the first weight's, which may be a frozen one's, and would round the others.

    Args:
        base: The transformers model.
        folder: Where it is saved.
    """
    dtypes = {p.dtype for name, p in base.named_parameters() if ".lora_" not in name and p.is_floating_point()}
    if len(dtypes) < 2:
        return
    widest = str(functools.reduce(torch.promote_types, dtypes)).removeprefix("torch.")
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = widest
    write_json(file, config)
