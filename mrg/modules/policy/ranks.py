"""A policy on several ranks: collective operations, and decoder layers that are sharded (FSDP2; Zhao et al., 2023).

Choices: only the weights of the decoder layers are sharded, which are most of a large model. Adapters, embedding, head,
norms and vision tower are replicated. Sharded weights are gathered by the forward and backward passes of the layers
alone, of which every rank must make the same number; a rollout, whose length differs between ranks, gathers all layers
once and then needs no communication.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mrg.errors import RunError
from mrg.log import set_rank
from mrg.modules.policy.lora import is_adapter

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

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


class Shardable(Protocol):
    """Interface of a policy that can be sharded."""

    sharded: bool
    gathered: bool

    @property
    def base(self) -> Any:
        """The transformers model."""


def shard(policy: Shardable, mesh: DeviceMesh) -> None:
    """Shard the weights of the decoder layers over the ranks of a mesh."""
    from torch.distributed.fsdp import fully_shard

    model = policy.base.model.language_model
    inside = {name for name, _ in model.layers.named_parameters()}
    # Adapters are replicated: they are small, and their checkpoint is the same under every strategy.
    adapters = {p for name, p in model.layers.named_parameters() if is_adapter(name)}
    outside = {p for name, p in model.named_parameters() if name.removeprefix("layers.") not in inside}
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, ignored_params=adapters)
    # The root has no weights of its own; it lets the next layer be gathered while one computes.
    fully_shard(model, mesh=mesh, ignored_params=adapters | outside, reshard_after_forward=False)
    policy.sharded = True


@contextlib.contextmanager
def gathered(policy: Shardable) -> Iterator[None]:
    """Context in which every rank holds all weights and computes independently; all ranks must enter and leave it.

    Needs memory for the whole model in its own precision on every rank. Nested contexts do nothing, so that ranks may
    enter an inner one any number of times.
    """
    if not policy.sharded or policy.gathered:
        yield
        return
    layers: list[Any] = list(policy.base.model.language_model.layers)
    policy.gathered = True
    for layer in layers:
        layer.unshard()
        layer.set_reshard_after_forward(False)
    try:
        yield
    finally:
        policy.gathered = False
        for layer in layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()


def full(value: Tensor) -> Tensor:
    """The whole tensor. If it is sharded, all ranks must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def exchange(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Replace the value of a parameter and return its previous value.

    Args:
        parameter: Parameter, sharded or not.
        value: New value of the same shape and sharding.
    """
    if not is_sharded(parameter):
        old, parameter.data = parameter.data, value.to(parameter.device)
        return old
    # FSDP owns the storage of a shard, so that it is written in place.
    old = parameter.detach().clone()
    parameter.copy_(value)
    return old


def is_sharded(value: Tensor) -> bool:
    """Whether each rank holds a part of the tensor."""
    return isinstance(value, DTensor)


def most_of_ranks(count: int, device: torch.device) -> int:
    """Maximum of a count over all ranks."""
    most = torch.tensor(count, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)
