"""What processes that train together must agree on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from mrg.errors import RunError
from mrg.log import set_rank

set_rank(lambda: rank_zero_only.rank)  # type: ignore[attr-defined]


def gather(value: Any, world_size: int) -> list[Any]:
    """The values of all ranks, in their order."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(values, value)
    return values


def any_rank(value: bool, world_size: int, device: torch.device) -> bool:
    """Whether it is true on any rank."""
    if world_size == 1:
        return value
    flag = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


def mean_over_ranks(value: float, world_size: int, device: torch.device) -> float:
    """The mean of a number: gradients are averaged over ranks, so what they are divided by is a mean too."""
    if world_size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total) / world_size


class OtherRankError(RunError):
    """Another process could not go on."""


@contextlib.contextmanager
def failing_together(world_size: int, failed: Callable[[], None]) -> Iterator[None]:
    """A part of a round in which ranks need not compute equally often; an error of one ends the round on all.

    Otherwise the others would wait for it until they are ended, too, and the state before the round could not be saved.

    Args:
        world_size: Number of ranks; all enter and leave.
        failed: Called on every rank before the error is raised. A process alone may also be interrupted (Ctrl-C).

    Raises:
        OtherRankError: On the ranks that had no error themselves.
    """
    problem: BaseException | None = None
    try:
        yield
    except BaseException as error:
        if world_size > 1 and not isinstance(error, Exception):
            raise  # the others may be anywhere
        problem = error
    said = gather(None if problem is None else " ".join(f"{type(problem).__name__}: {problem}".split()), world_size)
    if not any(said):
        return
    failed()
    if problem is not None:
        raise problem
    rank, reason = next((rank, text) for rank, text in enumerate(said) if text)
    raise OtherRankError(f"Rank {rank} stopped the run: {reason}")
