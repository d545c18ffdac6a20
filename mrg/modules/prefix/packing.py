"""A packed row of prompts and their completions: each prompt once, no padding (see `attention.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.errors import UserError
from mrg.modules.prefix.layout import Layout
from mrg.modules.prefix.prompts import Prompts


@dataclasses.dataclass
class Packed:
    """B prompts and N completions as one row of L tokens.

    Args:
        embeds: (1, L, D).
        positions: (A, 1, L), see `Prompts`.
        layout: Where the tokens are.
        predicts: (T,) for each real completion token, row by row, the token whose hidden state predicts it.
        visual: (1, L) bool, the image tokens.
    """

    embeds: Tensor
    positions: Tensor
    layout: Layout
    predicts: Tensor
    visual: Tensor


def pack(prompts: Prompts, completion_ids: Tensor, mask: Tensor, embed: Callable[[Tensor], Tensor]) -> Packed:
    """Pack prompts with their completions.

    The last token of a completion is predicted but never read, so it is left out.

    Args:
        prompts: B prompts.
        completion_ids: (N, C), N a multiple of B, row n behind prompt n // (N / B); padded on the right.
        mask: (N, C) bool, True at real tokens, of which every completion has one or more.
        embed: Token ids -> embeddings.

    Raises:
        ValueError: If N is not a multiple of B or a completion is empty.
    """
    num_prompts, num_rows = len(prompts.mask), len(mask)
    if num_rows % num_prompts:
        raise UserError(f"Expected as many completions behind each of {num_prompts} prompts, but got {num_rows}.")
    lengths = mask.sum(1)
    if num_rows and int(lengths.min()) < 1:
        raise UserError(f"Expected completions of one token or more, but row {int(lengths.argmin())} has none.")
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
    """Prompts first, then their completions, given how many tokens of each are read."""
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
