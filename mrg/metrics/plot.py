"""Bars of a score per condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrg.errors import MissingPackageError, UserError


def plot_conditions(values: Tensor, support: Tensor, conditions: Sequence[str], score: str, ax: Any = None) -> Any:
    """Horizontal bars, the first condition at the top; a condition that is nowhere (nan) is marked so.

    Args:
        values: (C,) scores in [0, 1], nan where 0/0.
        support: (C,) how many references have the finding.
        conditions: C names.
        score: What the values are.
        ax: Axes of matplotlib; new ones by default.

    Returns:
        The figure and its axes.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise MissingPackageError("Plots need matplotlib: pip install matplotlib") from error
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.ndim != 1:
        raise UserError("Expected argument `val` to hold a value per condition, but got one: leave it out.")
    if len(values) != len(conditions):
        raise UserError(f"Expected argument `val` to hold {len(conditions)} values, but got {len(values)}.")
    figure, axes = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(6.4, 0.8 + 0.3 * len(conditions)))
    names = [f"{name} ({int(n)})" for name, n in zip(conditions, support, strict=True)]
    positions = range(len(names))
    axes.barh(positions, values.nan_to_num().tolist(), height=0.65, color="#3b6ea5")
    for position, value in zip(positions, values.tolist(), strict=True):
        known = value == value  # not nan
        axes.text(
            value + 0.01 if known else 0.01,
            position,
            f"{value:.2f}" if known else "nowhere",
            va="center",
            fontsize=8,
            color="black" if known else "gray",
        )
    axes.set_yticks(positions, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel(f"{score.capitalize()} (in brackets: findings in the references)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure, axes
