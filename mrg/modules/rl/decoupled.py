"""Advantages from parts of a reward that are normalized one by one (Liu et al., GDPO, 2026).

Normalizing the sum of the parts lets the part with the largest spread within a group decide alone: two completions that
differ in a rare finding and in the format get almost the advantage of the format. Here each part k is normalized within
its group first, and the sum then over the completions of all processes:

    a_k = (r_k - mean_g(r_k)) / (std_g(r_k) + eps)
    s   = sum over k of  w_k a_k
    A   = s / (std(s) + eps)

A part that is equal in a whole group, or present fewer than twice, adds exactly 0 to it. TRL 1.16
(`multi_objective_aggregation="normalize_then_sum"`) also subtracts the mean of s, which is 0: each a_k sums to 0 over
the completions of its group that have it. Leaving it out keeps dead groups at exactly 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mrg.modules.rl.advantage import dead_groups, group_advantages


def decoupled_terms(
    parts: Mapping[str, Tensor],
    weights: Mapping[str, float],
    group_size: int,
    present: Mapping[str, Tensor] | None = None,
    eps: float = 1e-4,
) -> dict[str, Tensor]:
    """Weighted normalized parts, `w_k a_k`, of the parts with a weight other than 0.

    Args:
        parts: Name -> (N,) scores; row n belongs to study n // group_size.
        weights: Name -> weight.
        group_size: Completions per study, at least 2.
        present: Name -> (N,) bool for parts that may be missing.
        eps: Number added to each deviation.

    Returns:
        Name -> (N,) float64, 0 where the part is missing and in groups in which it is dead.

    Raises:
        UserError: If a part is not finite, or the group size is out of range.
    """
    present = present or {}
    return {
        name: weights[name] * group_advantages(part, group_size, "group", eps, present.get(name))
        for name, part in parts.items()
        if weights[name]
    }


def scaled(summed: Tensor, deviation: float, scored: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    """Advantages (N,) from the sum of the terms; 0 where no part is present.

    Args:
        summed: (N,) sum of `decoupled_terms`.
        deviation: Standard deviation of the sums of all processes, with Bessel's correction.
        scored: (N,) bool, True where a part is present; None if that is everywhere.
        eps: Number added to the deviation.
    """
    advantages = summed / (deviation + eps)
    return advantages if scored is None else advantages.where(scored, 0.0)


def part_statistics(
    terms: Mapping[str, Tensor],
    parts: Mapping[str, Tensor],
    group_size: int,
    present: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """What each part contributes to the advantages of a round.

    Args:
        terms: Name -> (N,) terms of the completions of all processes, see `decoupled_terms`.
        parts: Name -> (N,) scores.
        group_size: Completions per study.
        present: Name -> (N,) bool for parts that may be missing.

    Returns:
        Log key -> value. `share/<part>`: its share of the sum of absolute terms, 0 if all are 0. `dead/<part>`: share
        of groups in which it is dead. `correlation/<part>`: Pearson correlation of its term with the sum of the terms,
        left out if one of the two is constant.
    """
    present, total = present or {}, torch.stack(list(terms.values())).sum(0)
    whole = float(sum(term.abs().sum() for term in terms.values()))
    values = {}
    for name, term in terms.items():
        values[f"share/{name}"] = float(term.abs().sum()) / whole if whole else 0.0
        values[f"dead/{name}"] = float(dead_groups(parts[name], group_size, present.get(name)).double().mean())
        here = present.get(name, torch.ones_like(term, dtype=torch.bool))
        pair = torch.stack([term[here], total[here]])
        if here.any() and bool((pair.amax(1) > pair.amin(1)).all()):
            values[f"correlation/{name}"] = float(torch.corrcoef(pair)[0, 1])
    return values
