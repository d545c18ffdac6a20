"""Prompts as the language model reads them: embeddings with those of the images in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor


@dataclasses.dataclass
class Prompts:
    """The prompts of B studies.

    Args:
        embeds: (B, P, D) with image embeddings in place.
        mask: (B, P) bool, True at real tokens.
        positions: (A, B, P) int64: time, height and width of each token (A 3), or its index (A 1).
        visual: (B, P) bool, True at image tokens.
        deepstack: For each of the first layers of a Qwen3-VL (V, D), which is added at the V image tokens after it.
        blocks: (B, P) int64 index of the image that a token belongs to, -1 at text, for models in which the tokens of
            an image attend to each other in both directions; None for causal models.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    visual: Tensor
    deepstack: tuple[Tensor, ...] = ()
    blocks: Tensor | None = None

    def rows(self, index: Tensor) -> Prompts:
        """The prompts at these indices, which may repeat."""
        deepstack = self.deepstack
        if deepstack:
            sizes = self.visual.sum(1).tolist()
            chosen = index.tolist()
            parts = [torch.split(layer, sizes) for layer in deepstack]
            deepstack = tuple(torch.cat([part[i] for i in chosen]) for part in parts)
        blocks = None if self.blocks is None else self.blocks[index]
        return Prompts(
            self.embeds[index], self.mask[index], self.positions[:, index], self.visual[index], deepstack, blocks
        )

    def detached(self) -> Prompts:
        """A copy whose tensors are leaves, in which several passes accumulate the gradients of the prompts."""
        embeds, *deepstack = (x.detach().requires_grad_(x.requires_grad) for x in (self.embeds, *self.deepstack))
        return dataclasses.replace(self, embeds=embeds, deepstack=tuple(deepstack))

    def send_back(self, leaves: Prompts, backward: Callable[[Tensor], None]) -> None:
        """Backpropagate the gradients accumulated in `detached` leaves into what the prompts were computed from."""
        pairs = zip((self.embeds, *self.deepstack), (leaves.embeds, *leaves.deepstack), strict=True)
        parts = [(own * leaf.grad).sum() for own, leaf in pairs if leaf.grad is not None]
        if parts:
            backward(torch.stack(parts).sum())

    @property
    def next_position(self) -> Tensor:
        """(B,) position of the first completion token."""
        return self.positions.masked_fill(~self.mask, 0).amax((0, 2)) + 1
