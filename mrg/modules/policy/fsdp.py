"""A policy whose decoder layers are shared out over ranks (FSDP2; Zhao et al., PyTorch FSDP, 2023).

Choices: only the weights of the decoder layers are sharded, which is most of a large model; adapters, embedding, head,
norms and the vision tower stay whole on every rank, and their gradients are averaged by us. So what is sharded is
gathered by the layers' own forward and backward passes alone, which every rank must make equally often; rollouts, whose
lengths differ by rank, gather all layers once and then need nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from lightning import Trainer
    from torch.distributed.device_mesh import DeviceMesh

    from mrg.modules.policy.policy import Policy


BUCKET = 2**25
"""Numbers that are averaged at once, as a copy beside the gradients."""


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Share the decoder layers' weights out over the ranks of a mesh.

    Args:
        policy: Equal on all ranks.
        mesh: One dimension.
    """
    from torch.distributed.fsdp import fully_shard

    model = policy.base.model.language_model
    inside = {name for name, _ in model.layers.named_parameters()}
    # Adapters stay whole: they are small, and a checkpoint of them is the same whatever the strategy.
    whole = {p for name, p in model.layers.named_parameters() if ".lora_" in name}
    outside = {p for name, p in model.named_parameters() if name.removeprefix("layers.") not in inside}
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    # The root holds no weights; it lets the next layer be gathered while one computes.
    fully_shard(model, mesh=mesh, ignored_params=whole | outside, reshard_after_forward=False)
    policy.sharded = True


@contextlib.contextmanager
def gathered(policy: Policy) -> Iterator[None]:
    """Within this context every rank holds all weights, and computes without the others; all ranks enter and leave.

    Takes the memory of the whole model in its own precision on every rank. Inside of another one it does nothing, so
    that ranks may enter it there as often as each needs.
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
    """The whole of a tensor; where it is sharded, all ranks must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def exchange(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Put a value in a parameter's place; returns what was there.

    Args:
        parameter: Sharded or not.
        value: Of its shape, and sharded as it is.
    """
    if not is_sharded(parameter):
        old, parameter.data = parameter.data, value.to(parameter.device)
        return old
    # A shard's storage belongs to FSDP: what is in it changes, but not the storage.
    old = parameter.detach().clone()
    parameter.copy_(value)
    return old


def is_sharded(value: Tensor) -> bool:
    """Whether each rank holds a part."""
    return isinstance(value, DTensor)


def most_of_ranks(count: int, device: torch.device) -> int:
    """The largest count of all ranks."""
    most = torch.tensor(count, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def average_gradients(parameters: Iterable[nn.Parameter], world_size: int) -> None:
    """Average over ranks what no strategy does: a parameter without a gradient has one of 0.

    Args:
        parameters: Those of sharded layers are left out: FSDP has averaged them.
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
    """Ranks make as many backward passes as their own groups need, and average their gradients once, at the end.

    Args:
        trainer: Whose processes these are.
        parameters: Whose gradients.
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
    """Neighbours of one precision, `BUCKET` numbers or a larger one at a time: an adapter has hundreds of gradients."""
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
    """Scale gradients down to a norm over all parameters, sharded or not; returns the norm before."""
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
    """Parameters that one kernel can update together: sharded and whole ones apart, and those that do not decay.

    Args:
        parameters: Those that are frozen are left out.
        weight_decay: Of matrices (and kernels of convolutions); vectors, which are norms and biases, do not decay.
    """
    trained = [p for p in parameters if p.requires_grad]
    groups = []
    for sharded in (False, True):
        part = [p for p in trained if is_sharded(p) == sharded]
        matrices, vectors = ([p for p in part if (p.ndim > 1) == decays] for decays in (True, False))
        if weight_decay:
            groups += [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        else:  # in their order, as in checkpoints
            groups.append({"params": part, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
