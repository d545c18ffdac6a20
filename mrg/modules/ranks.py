"""Collective operations of the processes that train together."""

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
    """Values of all ranks, in the order of ranks."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(values, value)
    return values


def any_rank(value: bool, world_size: int, device: torch.device) -> bool:
    """Whether a value is true on any rank."""
    if world_size == 1:
        return value
    flag = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


def mean_over_ranks(value: float, world_size: int, device: torch.device) -> float:
    """Mean of a number over ranks: gradients are averaged, so their divisor must be a mean as well."""
    if world_size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total) / world_size


class OtherRankError(RunError):
    """Another rank stopped the run."""


@contextlib.contextmanager
def failing_together(world_size: int, failed: Callable[[], None]) -> Iterator[None]:
    """Context in which an error on one rank ends the round on all ranks.

    Without it, the other ranks would wait until they are killed, and the state before the round could not be saved.

    Args:
        world_size: Number of ranks; all enter and leave the context.
        failed: Function that is called on every rank before the error is raised. With a single process, also on an
            interrupt (Ctrl-C).

    Raises:
        OtherRankError: On the ranks that had no error themselves.
    """
    problem: BaseException | None = None
    try:
        yield
    except BaseException as error:
        if world_size > 1 and not isinstance(error, Exception):
            raise  # the other ranks may be anywhere
        problem = error
    reasons = gather(None if problem is None else " ".join(f"{type(problem).__name__}: {problem}".split()), world_size)
    if not any(reasons):
        return
    failed()
    if problem is not None:
        raise problem
    rank, reason = next((rank, text) for rank, text in enumerate(reasons) if text)
    raise OtherRankError(f"Rank {rank} stopped the run: {reason}")
