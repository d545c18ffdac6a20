"""How often each training study is drawn: more often if it shows a rare finding.

Studies with rare findings are few, and a group without a finding teaches nothing about findings. A study is drawn as
often as the largest factor of its findings says. The posterior that a policy learns moves with the shares of findings:
it states them more readily than the data without balancing would teach, which corpus F1 and validation show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mrg.errors import UserError, nearest
from mrg.metrics.conditions import CONDITIONS, THIRTEEN, stated
from mrg.metrics.labels import Labeler, run_labeler

Balance = Mapping[str, float] | Literal["inverse_prevalence"]
MOST = 10.0
"""Largest factor of `"inverse_prevalence"`: one study in a thousand is not worth a thousand repetitions."""


def check_balance(balance: Any) -> None:
    """Check the setting `data.init_args.balance`.

    Raises:
        UserError: If it names an unknown condition, or a factor is not finite and above 0.
    """
    if balance is None or balance == "inverse_prevalence":
        return
    if not isinstance(balance, Mapping):
        raise UserError(
            "Expected data.init_args.balance to be 'inverse_prevalence' or factors by condition, such as "
            f"{{Cardiomegaly: 2}}, but got {balance!r}."
        )
    for name, factor in balance.items():
        if name not in CONDITIONS:
            raise UserError(
                "Expected the keys of data.init_args.balance to be conditions, but got "
                f"{name!r}{nearest(name, CONDITIONS)}"
            )
        if not 0 < factor < math.inf:
            raise UserError(f"Expected data.init_args.balance.{name} to be above 0, but got {factor}.")


def study_weights(balance: Balance, reports: Sequence[str], labeler: Labeler) -> Tensor:
    """(N,) float64: how often each study is drawn, relative to one without a factor.

    Args:
        balance: Factor by condition, or `"inverse_prevalence"`: the prevalence of the most frequent of the 13 findings
            divided by that of the condition, at most `MOST`.
        reports: Training reports.
        labeler: Labeler of the run.

    Raises:
        UserError: If a condition that has a factor occurs in no report.
    """
    found = stated(run_labeler(labeler, list(reports)).cpu())
    counts = found.sum(0)
    if isinstance(balance, str):
        known = dict(zip(THIRTEEN, counts.tolist()[: len(THIRTEEN)], strict=True))
        factors = {name: min(MOST, max(known.values()) / count) for name, count in known.items() if count}
    else:
        factors = dict(balance)
    weights = torch.zeros(len(reports), dtype=torch.float64)
    for name, factor in factors.items():
        column = CONDITIONS.index(name)
        if not int(counts[column]):
            raise UserError(f"No training report states {name}: remove it from data.init_args.balance.")
        weights = weights.maximum(torch.where(found[:, column], factor, 0.0).double())
    return torch.where(weights > 0, weights, 1.0)


def draw(weights: Tensor, generator: torch.Generator, num: int = 0) -> list[int]:
    """Studies in random order, each within one of its expected number (systematic sampling).

    Args:
        weights: (N,) weights; studies with a weight of 0 are never drawn.
        generator: Generator on the CPU.
        num: Number of studies to draw; as many as there are by default.
    """
    num = num or len(weights)
    order = torch.randperm(len(weights), generator=generator)
    order = order[weights[order] > 0]
    expected = weights[order] * (num / weights.sum())
    points = torch.arange(num, dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)
    places = torch.searchsorted(expected.cumsum(0), points, right=True).clamp(max=len(order) - 1)
    drawn: list[int] = order[places][torch.randperm(num, generator=generator)].tolist()
    return drawn
