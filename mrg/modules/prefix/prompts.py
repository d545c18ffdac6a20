"""The prompts of studies, images in place, as the language model reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor


@dataclasses.dataclass
class Prompts:
    """The prompts of B studies, ready for the language model.

    Args:
        embeds: (B, P, D) with image embeddings in place.
        mask: (B, P) bool.
        positions: (A, B, P) int64: time, height and width of each token, A 3, or its place alone, A 1.
        visual: (B, P) bool, the image tokens.
        deepstack: For each of the first layers of a Qwen3-VL (V, D), what is added at the V image tokens after it.
        blocks: (B, P) int64, which image of its prompt a token is of, -1 at text, where the model reads the tokens of
            an image in both directions; None where it reads causally.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    visual: Tensor
    deepstack: tuple[Tensor, ...] = ()
    blocks: Tensor | None = None

    def rows(self, index: Tensor) -> Prompts:
        """The prompts of some studies, in the order of the index; one may come several times."""
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
        """The same as leaves, at which gradients are collected where they are wanted."""
        embeds, *deepstack = (x.detach().requires_grad_(x.requires_grad) for x in (self.embeds, *self.deepstack))
        return dataclasses.replace(self, embeds=embeds, deepstack=tuple(deepstack))

    def send_back(self, leaves: Prompts, backward: Callable[[Tensor], None]) -> None:
        """Send the gradients collected at `detached` leaves on to what these prompts were made by."""
        pairs = zip((self.embeds, *self.deepstack), (leaves.embeds, *leaves.deepstack), strict=True)
        parts = [(own * leaf.grad).sum() for own, leaf in pairs if leaf.grad is not None]
        if parts:
            backward(torch.stack(parts).sum())

    @property
    def next_position(self) -> Tensor:
        """(B,) position of the first completion token."""
        return self.positions.masked_fill(~self.mask, 0).amax((0, 2)) + 1
