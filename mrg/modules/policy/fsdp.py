"""A policy whose decoder layers are sharded over ranks (FSDP2; Zhao et al., "PyTorch FSDP", 2023), and its gradients.

Choices: only the weights of the decoder layers are sharded, which are most of a large model. Adapters, embedding, head,
norms and vision tower are replicated, and their gradients are averaged here. Sharded weights are gathered by the
forward and backward passes of the layers alone, of which every rank must make the same number; a rollout, whose length
differs between ranks, gathers all layers once and then needs no communication.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mrg.modules.policy.lora import is_adapter

if TYPE_CHECKING:
    from lightning import Trainer
    from torch.distributed.device_mesh import DeviceMesh


BUCKET = 2**25
"""Number of elements averaged in one all-reduce, which copies them."""


class Shardable(Protocol):
    """What this file needs of a policy."""

    sharded: bool
    gathered: bool

    @property
    def base(self) -> Any:
        """The transformers model."""


def shard(policy: Shardable, mesh: DeviceMesh) -> None:
    """Shard the weights of the decoder layers over the ranks of a mesh.

    Args:
        policy: The policy, equal on all ranks.
        mesh: Device mesh of one dimension.
    """
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


def average_gradients(parameters: Iterable[nn.Parameter], world_size: int) -> None:
    """Average the gradients of replicated parameters over ranks; a missing gradient counts as 0.

    Args:
        parameters: Parameters; sharded ones are skipped, because FSDP averages their gradients.
        world_size: Number of ranks.
    """
    gradients: list[Tensor] = []
    for parameter in parameters:
        if parameter.requires_grad and not is_sharded(parameter):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        torch.distributed.all_reduce(flat)
        flat /= world_size
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


@contextlib.contextmanager
def local_gradients(trainer: Trainer, parameters: Callable[[], Iterable[nn.Parameter]]) -> Iterator[None]:
    """Context in which ranks may make different numbers of backward passes; gradients are averaged once, at its end.

    Args:
        trainer: The Lightning trainer.
        parameters: Function that returns the parameters whose gradients are averaged.
    """
    if trainer.world_size == 1:
        yield
        return
    with contextlib.ExitStack() as stack:
        if isinstance(trainer.strategy, DDPStrategy):
            stack.enter_context(trainer.strategy.block_backward_sync())
        yield
    average_gradients(parameters(), trainer.world_size)


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive gradients of one type with at most `BUCKET` elements together, or a single larger one."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (
            gradient.dtype != bucket[0].dtype
            or gradient.device != bucket[0].device
            or sum(part.numel() for part in bucket) + gradient.numel() > BUCKET
        ):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip gradients by their norm over all parameters, sharded or not; returns the norm before clipping."""
    trained = [p for p in parameters if p.requires_grad and p.grad is not None]
    parts = [[p for p in trained if is_sharded(p)], [p for p in trained if not is_sharded(p)]]
    if not parts[0]:
        norm: Tensor = nn.utils.clip_grad_norm_(trained, max_norm)
        return norm
    norms = [full(nn.utils.get_total_norm([p.grad for p in part if p.grad is not None])) for part in parts if part]
    total: Tensor = torch.stack(norms).norm()
    for part in parts:
        nn.utils.clip_grads_with_norm_(part, max_norm, total)
    return total


def optimizer_groups(parameters: Iterable[nn.Parameter], weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: sharded and replicated ones apart, and those without weight decay.

    Args:
        parameters: Parameters; frozen ones are skipped.
        weight_decay: Weight decay of matrices and convolution kernels. Vectors (norms and biases) have none.
    """
    trained = [p for p in parameters if p.requires_grad]
    groups = []
    for sharded in (False, True):
        part = [p for p in trained if is_sharded(p) == sharded]
        matrices, vectors = ([p for p in part if (p.ndim > 1) == decays] for decays in (True, False))
        if weight_decay:
            groups += [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        else:  # in the order of the parameters, as in checkpoints
            groups.append({"params": part, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
