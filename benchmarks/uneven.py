"""Simulate the time of a round's decoding when completions differ in length.

A decoding step takes `fixed + per_row * rows`. Finished rows and studies leave the batch as in the KV cache of
`mrg.modules.rollout.kv_cache`. Reading the prompts is excluded, because it takes the same time in all cases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

WAYS = ("one study after another", "together, finished rows stay", "together, finished rows leave")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of a decoding step.

    Args:
        fixed: Seconds independent of the number of rows: reading the weights, launching kernels.
        per_row: Seconds per row.
        source: Origin of the two numbers.
    """

    fixed: float
    per_row: float
    source: str

    def of(self, rows: np.ndarray) -> float:
        """Total seconds of steps with these numbers of rows."""
        return float(len(rows) * self.fixed + rows.sum() * self.per_row)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Log-normal lengths of completions.

    Args:
        mean: Mean length in tokens.
        sigma: Standard deviation of the logarithm.
        between: Share of the variance of the logarithm that is common to the completions of a study.
        most: Length at which a completion is truncated.
    """

    mean: float
    sigma: float
    between: float
    most: int

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Lengths of shape (..., B, G)."""
        study = rng.standard_normal((*shape[:-1], 1)) * self.between**0.5
        own = rng.standard_normal(shape) * (1 - self.between) ** 0.5
        drawn = self.mean * np.exp(self.sigma * (study + own) - self.sigma**2 / 2)
        return np.clip(np.rint(drawn), 1, self.most).astype(int)


def sigma_of(mean: float, longest: float, number: int) -> float:
    """Find by bisection the sigma with which the longest of `number` independent lengths is `longest` on average."""
    normal = np.random.default_rng(0).standard_normal((4000, number)).max(1)
    low, high = 0.0, 3.0
    for _ in range(60):
        sigma = (low + high) / 2
        if mean * np.exp(sigma * normal - sigma**2 / 2).mean() < longest:
            low = sigma
        else:
            high = sigma
    return (low + high) / 2


def rows_by_step(lengths: np.ndarray) -> np.ndarray:
    """Rows in the KV cache at each step over a batch of groups (B, G) after the prompts were read."""
    prompts, places = np.arange(len(lengths)), lengths.shape[1]
    rows = []
    for step in range(1, int(lengths.max())):
        counts = (lengths[prompts] > step).sum(1)
        kept, most = prompts[counts > 0], int(counts.max())
        if 4 * len(kept) * most <= 3 * len(prompts) * places:
            prompts, places = kept, most
        rows.append(len(prompts) * places)
    return np.array(rows, dtype=int)


def one_after_another(lengths: np.ndarray, cost: Cost) -> float:
    return sum(cost.of(rows_by_step(group[None])) for group in lengths)


def rows_stay(lengths: np.ndarray, cost: Cost) -> float:
    return cost.of(np.full(int(lengths.max()) - 1, lengths.size))


def rows_leave(lengths: np.ndarray, cost: Cost) -> float:
    return cost.of(rows_by_step(lengths))


def simulate(
    lengths: Lengths, cost: Cost, world_sizes: list[int], batch_size: int, group_size: int, rounds: int, seed: int
) -> list[dict[str, object]]:
    """Seconds of a round's decoding: mean over rounds and ranks, slowest rank, and ratio of the two."""
    rng, most = np.random.default_rng(seed), max(world_sizes)
    drawn = lengths.draw((rounds, most, batch_size, group_size), rng)
    functions: list[Callable[[np.ndarray, Cost], float]] = [one_after_another, rows_stay, rows_leave]
    result: list[dict[str, object]] = []
    for way, function in zip(WAYS, functions, strict=True):
        seconds = np.array([[function(rank, cost) for rank in part] for part in drawn])
        for world in world_sizes:
            slowest = seconds[:, :world].max(1)
            result.append(
                {
                    "way": way, "world_size": world, "seconds": float(seconds[:, :world].mean()),
                    "slowest": float(slowest.mean()), "wait": float(slowest.mean() / seconds[:, :world].mean()),
                }
            )  # fmt: skip
    return result
