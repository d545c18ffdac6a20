"""The optimizer step: gradients averaged over ranks and clipped, parameter groups, learning rate schedule."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from mrg.errors import UserError
from mrg.modules.checks import check_counts, check_range
from mrg.modules.policy.ranks import full, is_sharded

if TYPE_CHECKING:
    from lightning import Trainer

BUCKET = 2**25
"""Number of elements averaged in one all-reduce, which copies them."""


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, its learning rate schedule, and gradient clipping.

    Args:
        learning_rate: Peak learning rate.
        warmup_steps: Steps over which the learning rate rises linearly to its peak.
        decay_steps: Step at which the learning rate has fallen linearly to 0; 0 keeps it at its peak.
        weight_decay: Weight decay of matrices; norms, biases and other vectors are not decayed.
        max_grad_norm: Largest norm of the gradient; larger gradients are scaled down to it.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 10
    decay_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        check_range("optimizer.learning_rate", self.learning_rate, "above 0", 0 < self.learning_rate < math.inf)
        check_range("optimizer.weight_decay", self.weight_decay, "at least 0", 0 <= self.weight_decay < math.inf)
        check_range("optimizer.max_grad_norm", self.max_grad_norm, "above 0", self.max_grad_norm > 0)
        check_counts(0, "optimizer.", warmup_steps=self.warmup_steps, decay_steps=self.decay_steps)
        if 0 < self.decay_steps <= self.warmup_steps:
            raise UserError(
                "Expected model.init_args.optimizer.decay_steps to be 0 or above warmup_steps "
                f"({self.warmup_steps}), but got {self.decay_steps}: the learning rate would fall to 0 before it has "
                "risen."
            )

    def scale(self, step: int) -> float:
        """Learning rate of a step as a fraction of its peak."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warmup * max(0.0, 1 - step / self.decay_steps) if self.decay_steps else warmup

    def build(self, parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
        """Optimizer and schedule in the form that Lightning takes."""
        optimizer = torch.optim.AdamW(
            optimizer_groups(parameters, self.weight_decay), self.learning_rate, betas=(0.9, 0.99)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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
