"""Prompts as the language model reads them, and packed rows of prompts and completions.

A prompt is a row of embeddings with those of the images in place. A packed row holds each prompt once, followed by the
completions of all prompts, without padding; `attention.py` computes the attention over it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.errors import UserError


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


@dataclasses.dataclass(frozen=True)
class Layout:
    """Indices of the tokens of a packed row.

    Args:
        prompts: First token and end (exclusive) of each of B prompts.
        completions: For each prompt, first token and end (exclusive) of its completions.
        slots: For each prompt (G, C) indices into the tokens of its completions, one row per non-empty completion,
            padded on the right with the row's last token.
        real: For each prompt (G, C) bool, False at padding.
        tokens: For each prompt (T,) indices of the real tokens in the flattened (G * C) padded rows. Precomputed,
            because indexing with a mask would make a GPU synchronize in every layer.
        blocks: For each prompt (P,) index of the image that a token belongs to, -1 at text, for models in which the
            tokens of an image attend to each other in both directions; empty for causal prompts.
    """

    prompts: list[tuple[int, int]]
    completions: list[tuple[int, int]]
    slots: list[Tensor]
    real: list[Tensor]
    tokens: list[Tensor]
    blocks: list[Tensor] = dataclasses.field(default_factory=list)

    def prompt_masks(self, window: int | None, device: torch.device) -> list[Tensor | None]:
        """For each prompt (P, P) bool, the tokens that each token attends to; None if attention is plainly causal."""
        if self.blocks:
            return [attention_mask(blocks, window) for blocks in self.blocks]
        text = [torch.full((stop - start,), -1, device=device) for start, stop in self.prompts]
        return [attention_mask(x, window) if window is not None and len(x) > window else None for x in text]

    def completion_masks(self, window: int | None, device: torch.device) -> list[Tensor | None]:
        """For each prompt (C, P) bool, the prompt tokens that completion token c attends to; None where it is all.

        Raises:
            ValueError: If a completion is longer than the window.
        """
        masks: list[Tensor | None] = []
        for (start, stop), slots in zip(self.prompts, self.slots, strict=True):
            length, longest = stop - start, slots.shape[1] if len(slots) else 0
            if window is None or length + longest <= window:
                masks.append(None)
                continue
            if longest >= window:
                raise UserError(f"A completion of {longest} tokens does not fit the window of {window} tokens.")
            steps, keys = torch.arange(longest, device=device), torch.arange(length, device=device)
            masks.append(keys > length + steps[:, None] - window)
        return masks


def attention_mask(blocks: Tensor, window: int | None) -> Tensor:
    """(…, P, P) bool: each token attends to earlier tokens and to those of its own image, within the window.

    Args:
        blocks: (…, P) index of the image that a token belongs to, -1 at text.
        window: Sliding-window size in tokens, including the token itself; None for no limit.
    """
    place = torch.arange(blocks.shape[-1], device=blocks.device)
    same = (blocks[..., None] == blocks[..., None, :]) & (blocks[..., None] >= 0)
    mask = (place <= place[:, None]) | same
    return mask if window is None else mask & (place > place[:, None] - window)


@dataclasses.dataclass(frozen=True)
class Masks:
    """Attention masks of a layout, shared by all layers with the same window.

    Args:
        prompts: Result of `Layout.prompt_masks`.
        completions: Result of `Layout.completion_masks`.
        steps: For each prompt (T,) index of each token within its completion.
        dtype: Type of the kernels' additive masks.
    """

    prompts: list[Tensor | None]
    completions: list[Tensor | None]
    steps: list[Tensor]
    dtype: torch.dtype

    @classmethod
    def of(cls, layout: Layout, window: int | None, query: Tensor) -> Masks:
        """Build the masks of a layout, on the device and in the type of the queries."""
        prompts, completions = (f(window, query.device) for f in (layout.prompt_masks, layout.completion_masks))
        steps = [tokens % max(1, slots.shape[1]) for tokens, slots in zip(layout.tokens, layout.slots, strict=True)]
        return cls(prompts, completions, steps, query.dtype)

    def prompt(self, index: int) -> dict[str, Any]:
        """Arguments of the flash kernels for attention within a prompt."""
        mask = self.prompts[index]
        return {"is_causal": True} if mask is None else {"is_causal": False, "attn_mask": _additive(mask, self.dtype)}

    def completion(self, index: int) -> dict[str, Any]:
        """Arguments of the flash kernels for attention of a prompt's completion tokens to the prompt."""
        mask = self.completions[index]
        if mask is None:
            return {"is_causal": False}
        return {"is_causal": False, "attn_mask": _additive(mask.index_select(0, self.steps[index]), self.dtype)}


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)[None, None]


@dataclasses.dataclass
class Packed:
    """B prompts and N completions as one row of L tokens.

    Args:
        embeds: (1, L, D).
        positions: (A, 1, L), see `Prompts`.
        layout: Indices of the tokens.
        predicts: (T,) for each real completion token, row by row, index of the token whose hidden state predicts it.
        visual: (1, L) bool, True at image tokens.
    """

    embeds: Tensor
    positions: Tensor
    layout: Layout
    predicts: Tensor
    visual: Tensor


def pack(prompts: Prompts, completion_ids: Tensor, mask: Tensor, embed: Callable[[Tensor], Tensor]) -> Packed:
    """Pack prompts with their completions.

    The last token of a completion is predicted but never an input, so it is left out.

    Args:
        prompts: B prompts.
        completion_ids: (N, C), N a multiple of B; row n continues prompt n // (N / B); padded on the right.
        mask: (N, C) bool, True at real tokens; each row has at least one.
        embed: Maps token ids to embeddings.

    Raises:
        ValueError: If N is not a multiple of B or a completion is empty.
    """
    num_prompts, num_rows = len(prompts.mask), len(mask)
    if num_rows % num_prompts:
        raise UserError(f"Expected equally many completions for each of {num_prompts} prompts, but got {num_rows}.")
    lengths = mask.sum(1)
    if num_rows and int(lengths.min()) < 1:
        raise UserError(f"Expected completions of at least one token, but row {int(lengths.argmin())} has none.")
    group_size = num_rows // num_prompts
    inner = F.pad(mask[:, 1:], (0, 1))
    first = prompts.next_position.repeat_interleave(group_size)
    steps = torch.arange(mask.shape[1], device=mask.device)
    after = (first[:, None] + steps)[inner]
    embeds = torch.cat([prompts.embeds[prompts.mask], embed(completion_ids[inner])])
    positions = torch.cat([prompts.positions[:, prompts.mask], after.expand(len(prompts.positions), -1)], 1)
    visual = F.pad(prompts.visual[prompts.mask], (0, len(after)))
    layout = _layout(prompts.mask.sum(1).tolist(), (lengths - 1).view(num_prompts, group_size).tolist(), mask.device)
    if prompts.blocks is not None:
        blocks = [row[real] for row, real in zip(prompts.blocks, prompts.mask, strict=True)]
        layout = dataclasses.replace(layout, blocks=blocks)
    return Packed(embeds[None], positions[:, None], layout, _predicts(layout, lengths, mask), visual[None])


def _layout(prompt_lengths: list[int], lengths: list[list[int]], device: torch.device) -> Layout:
    """Layout of prompts and their completions, given how many tokens of each are inputs."""
    prompts, completions, slots, real, tokens, position = [], [], [], [], [], 0
    for length in prompt_lengths:
        prompts.append((position, position + length))
        position += length
    for group in lengths:
        completions.append((position, position + sum(group)))
        position += sum(group)
        read = torch.tensor([length for length in group if length], dtype=torch.long)
        steps = torch.arange(max(group, default=0))[None]
        start = read.cumsum(0) - read
        slots.append((start[:, None] + torch.minimum(steps, read[:, None] - 1)).to(device))
        inside = steps < read[:, None]
        real.append(inside.to(device))
        tokens.append(inside.flatten().nonzero()[:, 0].to(device))
    return Layout(prompts, completions, slots, real, tokens)


def _predicts(layout: Layout, lengths: Tensor, mask: Tensor) -> Tensor:
    num_prompts, num_rows = len(layout.prompts), len(mask)
    ends = torch.tensor([stop - 1 for _, stop in layout.prompts], device=mask.device)
    read = lengths - 1
    start = read.cumsum(0) - read + (layout.prompts[-1][1] if layout.prompts else 0)
    steps = torch.arange(mask.shape[1], device=mask.device)
    index = start[:, None] + steps - 1
    index[:, 0] = ends.repeat_interleave(num_rows // max(1, num_prompts))
    return index[mask]
