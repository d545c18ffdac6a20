"""Where the tokens of a packed row are, and what they see (see `attention.py`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mrg.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed row are.

    Args:
        prompts: For each of B prompts its first token and one past its last.
        completions: For each prompt the first token of its completions and one past the last one's.
        slots: For each prompt (G, C) index of a token within its completions, rows padded on the right with their last
            token; G completions that have any token at all.
        real: For each prompt (G, C) bool, False at padding.
        tokens: For each prompt (T,) where its completions' tokens stand among the G * C of the padded rows. Made once,
            for a mask as an index has a GPU wait in every layer.
        blocks: For each prompt (P,) the image that a token is of, -1 at text, where an image's tokens see each other in
            both directions; nothing where prompts are read causally.
    """

    prompts: list[tuple[int, int]]
    completions: list[tuple[int, int]]
    slots: list[Tensor]
    real: list[Tensor]
    tokens: list[Tensor]
    blocks: list[Tensor] = dataclasses.field(default_factory=list)

    def prompt_masks(self, window: int | None, device: torch.device) -> list[Tensor | None]:
        """For each prompt (P, P) bool, what a token of it sees; None where that is all before it."""
        lengths = [stop - start for start, stop in self.prompts]
        if self.blocks:
            return [sees(blocks, window) for blocks in self.blocks]
        text = [torch.full((length,), -1, device=device) for length in lengths]
        return [sees(x, window) if window is not None and len(x) > window else None for x in text]

    def reaches(self, window: int | None, device: torch.device) -> list[Tensor | None]:
        """For each prompt (C, P) bool, what of it a completion's token number c sees; None where that is all of it."""
        reaches: list[Tensor | None] = []
        for (start, stop), slots in zip(self.prompts, self.slots, strict=True):
            length, longest = stop - start, slots.shape[1] if len(slots) else 0
            if window is None or length + longest <= window:
                reaches.append(None)
                continue
            if longest >= window:
                raise UserError(f"A completion of {longest} tokens does not fit the window of {window} tokens.")
            steps, keys = torch.arange(longest, device=device), torch.arange(length, device=device)
            reaches.append(keys > length + steps[:, None] - window)
        return reaches


def sees(blocks: Tensor, window: int | None) -> Tensor:
    """(…, P, P) bool, which tokens each token sees: those before it and of its own image, within the window.

    Args:
        blocks: (…, P) the image that a token is of, -1 at text.
        window: See `SharedAttention`.
    """
    place = torch.arange(blocks.shape[-1], device=blocks.device)
    same = (blocks[..., None] == blocks[..., None, :]) & (blocks[..., None] >= 0)
    mask = (place <= place[:, None]) | same
    return mask if window is None else mask & (place > place[:, None] - window)


@dataclasses.dataclass(frozen=True)
class Masks:
    """What tokens see where that is not plainly causal, for layers of one window.

    Args:
        prompts: See `Layout.prompt_masks`.
        reaches: See `Layout.reaches`.
        steps: For each prompt (T,) how many tokens of its own completion come before each token.
        dtype: Of the kernels' masks.
    """

    prompts: list[Tensor | None]
    reaches: list[Tensor | None]
    steps: list[Tensor]
    dtype: torch.dtype

    @classmethod
    def of(cls, layout: Layout, window: int | None, query: Tensor) -> Masks:
        """The masks of a layout."""
        prompts, reaches = (f(window, query.device) for f in (layout.prompt_masks, layout.reaches))
        steps = [tokens % max(1, slots.shape[1]) for tokens, slots in zip(layout.tokens, layout.slots, strict=True)]
        return cls(prompts, reaches, steps, query.dtype)

    def prompt(self, index: int) -> dict[str, Any]:
        """Arguments of the flash kernels for a prompt."""
        mask = self.prompts[index]
        return {"is_causal": True} if mask is None else {"is_causal": False, "attn_mask": _added(mask, self.dtype)}

    def reach(self, index: int) -> dict[str, Any]:
        """Arguments of the flash kernels for the tokens of a prompt's completions, one after another, before it."""
        mask = self.reaches[index]
        if mask is None:
            return {"is_causal": False}
        return {"is_causal": False, "attn_mask": _added(mask.index_select(0, self.steps[index]), self.dtype)}


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)[None, None]
