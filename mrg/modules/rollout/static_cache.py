"""A KV cache of fixed shapes and addresses, so that a decoding step can be compiled or captured once.

Choices: keys and values are written at the index of the step into tensors of full length, and masks instead of slices
define what a token sees; the index of the step is a tensor; finished rows are dropped at a few sizes only, each of
which is another shape; the tensors are reused by the next rollout and are as wide as the widest one so far. The softmax
over the prompt and a row's own tokens is that of `kv_cache.py`, but over both parts at once, so that it also holds if a
sliding window leaves nothing of the prompt visible.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from mrg.modules.policy.policy import Policy
from mrg.modules.prefix.attention import PackedPrompts
from mrg.modules.rollout.kv_cache import CUDA_INTERVAL, KVCache, next_logits, scores

NUM_DROPS = 2
"""Largest number of times that the number of rows is halved."""
LENGTH_MULTIPLE = 64
"""Prompts are padded to a multiple of this number of tokens."""


@dataclasses.dataclass
class CacheView:
    """Keys and values of B prompts and of S rows behind each, in tensors with fixed addresses.

    Args:
        num_prompts: B, the number of prompts.
        num_places: S, the number of rows behind each prompt.
        prompts: Layer -> keys and values (B, K, P, d), 0 after the end of a prompt.
        rows: Layer -> keys and values (B * S, K, C, d).
        lengths: (B,) int64 number of tokens of each prompt; 0 if there is none.
    """

    num_prompts: int
    num_places: int
    prompts: dict[int, tuple[Tensor, Tensor]]
    rows: dict[int, tuple[Tensor, Tensor]]
    lengths: Tensor

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
        """What a compiled step depends on: shapes and precision."""
        prompt, row = self.prompts[0][0], self.rows[0][0]
        return tuple(prompt.shape), tuple(row.shape), row.dtype


class StaticAttention:
    """Attention of a decoding step, see `SharedAttention`; everything that changes between steps is in tensors.

    Args:
        view: Cache that the keys and values of the step are written to.
        step: (1,) int64 number of tokens before those of the step.
    """

    def __init__(self, view: CacheView, step: Tensor) -> None:
        self.view, self.step = view, step

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Attend to the prompt and the row, see `SharedAttention`; R is B * S and L is 1."""
        view = self.view
        num_rows, num_heads, _, width = query.shape
        groups = key.shape[1]
        per_group = num_heads // groups
        shape = (view.num_prompts, view.num_places, groups, per_group)

        def behind(x: Tensor) -> Tensor:  # (B, K, S * H / K, …) -> (B * S, K, H / K, …)
            return (
                x.view(shape[0], groups, shape[1], per_group, -1)
                .transpose(1, 2)
                .reshape(num_rows, groups, per_group, -1)
            )

        def before(x: Tensor) -> Tensor:
            return x.view(*shape, -1).transpose(1, 2).reshape(shape[0], groups, shape[1] * per_group, -1)

        keys, values = view.rows[layer]
        keys.index_copy_(2, self.step, key.to(keys.dtype))
        values.index_copy_(2, self.step, value.to(values.dtype))
        prompt_keys, prompt_values = view.prompts[layer]
        asked = query.reshape(num_rows, groups, per_group, width)
        exact = torch.promote_types(query.dtype, torch.float32)
        unseen, unwritten = self.masks(prompt_keys.shape[2], keys.shape[2], window)
        above = scores(before(asked), prompt_keys, scale).masked_fill(unseen, -torch.inf)
        own = scores(asked, keys, scale).masked_fill(unwritten, -torch.inf)
        # A token sees itself, so the maximum over both parts is finite.
        top = torch.maximum(behind(above.amax(-1, keepdim=True)), own.amax(-1, keepdim=True))
        above, own = (above - before(top)).exp(), (own - top).exp()
        total = behind(above.sum(-1, keepdim=True)) + own.sum(-1, keepdim=True)
        output = behind(above.to(value.dtype) @ prompt_values).to(exact) + (own.to(value.dtype) @ values).to(exact)
        return (output / total).to(query.dtype).reshape(num_rows, num_heads, 1, width)

    def masks(self, num_above: int, num_own: int, window: int | None) -> tuple[Tensor, Tensor]:
        """(B, 1, 1, P) and (C,) bool, positions of prompts and rows that the tokens of the step do not see."""
        lengths = self.view.lengths[:, None, None, None]
        place, index = (torch.arange(n, device=lengths.device) for n in (num_above, num_own))
        unseen, unwritten = place >= lengths, index > self.step
        if window is None:
            return unseen, unwritten
        return unseen | (place <= lengths + self.step - window), unwritten | (index <= self.step - window)


def static_step(policy: Policy, view: CacheView, token: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """Logits (R, V) of the token after number `step`, a tensor of one element; see `next_logits`."""
    return next_logits(policy, token, position, step, StaticAttention(view, step))


class Size(NamedTuple):
    """Size of a view: B prompts with S rows each."""

    num_prompts: int
    num_places: int


def sizes(num_prompts: int, num_places: int) -> list[Size]:
    """Sizes of a rollout, from its start: rows per prompt are halved, or prompts once each has a single row.

    Args:
        num_prompts: Number of prompts at the start.
        num_places: Number of rows behind each prompt at the start.
    """
    result = [Size(num_prompts, num_places)]
    for _ in range(NUM_DROPS):
        prompts, places = result[-1]
        smaller = Size(prompts, (places + 1) // 2) if places > 1 else Size((prompts + 1) // 2, 1)
        if smaller == result[-1]:
            break
        result.append(smaller)
    return result


class CacheMemory:
    """Memory of a static cache; the views of all sizes start at the same addresses.

    Args:
        reading: Keys and values of the prompts.
        size: Size of the largest view.
        longest: Largest number of tokens of a prompt.
        max_new_tokens: Largest number of tokens of a completion.
    """

    def __init__(self, reading: PackedPrompts, size: Size, longest: int, max_new_tokens: int) -> None:
        self.size, self.longest, self.max_new_tokens = size, longest, max_new_tokens
        self.flat: dict[int, tuple[Tensor, ...]] = {}
        self.heads: dict[int, tuple[int, int]] = {}
        self.views: dict[Size, CacheView] = {}
        for layer, (key, value) in reading.kept.items():
            self.heads[layer] = (key.shape[1], key.shape[3])
            per_token = size.num_prompts * key.shape[1] * key.shape[3]
            counts = [per_token * longest] * 2 + [per_token * size.num_places * max_new_tokens] * 2
            kinds = [key, value, key, value]
            self.flat[layer] = tuple(like.new_zeros(count) for like, count in zip(kinds, counts, strict=True))
        self.lengths = torch.zeros(size.num_prompts, dtype=torch.long, device=reading.kept[0][0].device)

    def fits(self, reading: PackedPrompts, num_prompts: int, longest: int) -> bool:
        """Whether a rollout behind these prompts fits in."""
        key, own = reading.kept[0][0], self.flat[0][0]
        same = (key.dtype, key.device) == (own.dtype, own.device)
        return same and num_prompts <= self.size.num_prompts and longest <= self.longest

    def view(self, size: Size) -> CacheView:
        """View of a size: the same tensors every time."""
        if size not in self.views:
            prompts, rows = {}, {}
            for layer, parts in self.flat.items():
                heads, width = self.heads[layer]
                above = (size.num_prompts, heads, self.longest, width)
                own = (size.num_prompts * size.num_places, heads, self.max_new_tokens, width)
                shaped = [_begin(part, shape) for part, shape in zip(parts, (above, above, own, own), strict=True)]
                prompts[layer], rows[layer] = (shaped[0], shaped[1]), (shaped[2], shaped[3])
            lengths = _begin(self.lengths, (size.num_prompts,))
            self.views[size] = CacheView(*size, prompts, rows, lengths)
        return self.views[size]


def _begin(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """First elements of a tensor in a shape; compiled code may rely on their address."""
    view = flat[: torch.Size(shape).numel()].view(shape)
    # CUDA graphs write to this address; if it changes, they are recorded again.
    torch._dynamo.mark_static_address(view, guard=False)
    return view


def skipped_graphs() -> int:
    """Number of graphs that inductor has compiled without the requested CUDA graphs."""
    return int(torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])


class StaticDecoder:
    """Makes static KV caches, and reuses their memory from rollout to rollout."""

    def __init__(self) -> None:
        self.memories: dict[tuple[int, int], CacheMemory] = {}

    def start(
        self, policy: Policy, reading: PackedPrompts, group_size: int, max_new_tokens: int
    ) -> StaticKVCache | KVCache:
        """KV cache of a rollout; the cache of the rollout before becomes invalid."""
        key = (group_size, max_new_tokens)
        spans = reading.layout.prompts
        num_prompts, longest = len(spans), max(stop - start for start, stop in spans)
        memory = self.memories.pop(key, None)
        if memory is None or not memory.fits(reading, num_prompts, longest):
            if memory is not None:  # large enough for both, so that it soon stops growing
                num_prompts, longest = max(num_prompts, memory.size.num_prompts), max(longest, memory.longest)
                memory = None  # frees its memory first
            longest = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            memory = CacheMemory(reading, Size(num_prompts, group_size), longest, max_new_tokens)
        self.memories[key] = memory
        return StaticKVCache(self, memory, reading)

    def step(self, policy: Policy, view: CacheView, token: Tensor, position: Tensor, step: Tensor) -> Tensor:
        """One decoding step, see `static_step`."""
        return static_step(policy, view, token, position, step)


class StaticKVCache:
    """KV cache of a rollout like `KVCache`, but at a few fixed sizes.

    Args:
        decoder: Decoder that computes the steps.
        memory: Memory of the cache; the content of an earlier rollout is overwritten.
        reading: Keys and values of the prompts.
    """

    def __init__(self, decoder: StaticDecoder, memory: CacheMemory, reading: PackedPrompts) -> None:
        self.decoder, self.memory = decoder, memory
        self.sizes = sizes(*memory.size)
        self.view = memory.view(self.sizes[0])
        spans = reading.layout.prompts
        self.view.lengths.zero_()
        self.view.lengths[: len(spans)] = torch.tensor([stop - start for start, stop in spans]).to(self.view.lengths)
        for layer in list(reading.kept):
            for kept, above, own in zip(
                reading.kept.pop(layer), self.view.prompts[layer], self.view.rows[layer], strict=True
            ):
                above.zero_()
                own.zero_()  # masked values still matter if they are nan
                for index, (start, stop) in enumerate(spans):
                    above[index, :, : stop - start] = kept[0, :, start:stop]
        num_rows, device = len(spans) * memory.size.num_places, self.view.lengths.device
        places = torch.arange(memory.size.num_prompts * memory.size.num_places, device=device)
        self.initial_rows = places.clamp(max=num_rows)
        self.steps = torch.arange(memory.max_new_tokens, device=device)
        self.interval = CUDA_INTERVAL if device.type == "cuda" else 1

    def read(self, policy: Policy, token: Tensor, position: Tensor, step: int) -> Tensor:
        """Logits after a token of each row, see `next_logits`."""
        return self.decoder.step(policy, self.view, token, position, self.steps[step : step + 1])

    def compact(self, going: Tensor) -> Tensor | None:
        """Switch to a smaller size if the unfinished rows fit into one.

        Args:
            going: (B * S,) bool, True for unfinished rows.

        Returns:
            Indices of the rows that remain, or None if all do.
        """
        old = self.view
        size = Size(old.num_prompts, old.num_places)
        writing = going.view(size)
        counts = writing.sum(1)
        needed = torch.stack([(counts > 0).sum(), counts.max()]).tolist()
        smaller = self.sizes[self.sizes.index(size) :]
        fitting = [s for s in smaller if s.num_prompts >= needed[0] and s.num_places >= needed[1]]
        if fitting[-1] == size:
            return None
        num_prompts, num_places = fitting[-1]
        prompts = (counts > 0).int().argsort(stable=True, descending=True)[:num_prompts].sort().values
        places = writing[prompts].int().argsort(stable=True, dim=1, descending=True)[:, :num_places]
        keep: Tensor = (prompts[:, None] * old.num_places + places).flatten()
        self.view = self.memory.view(fitting[-1])
        # Both views start at the same address: what remains is copied out of the old one first.
        for layer, pairs in old.rows.items():
            for mine, its in zip(self.view.rows[layer], pairs, strict=True):
                mine.copy_(its[keep])
            if num_prompts < old.num_prompts:
                for mine, its in zip(self.view.prompts[layer], old.prompts[layer], strict=True):
                    mine.copy_(its[prompts])
        if num_prompts < old.num_prompts:
            self.view.lengths.copy_(old.lengths[prompts])
        return keep
