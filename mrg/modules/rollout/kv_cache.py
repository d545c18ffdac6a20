"""KV cache of groups that share a prompt: its keys and values exist once and are read once per step for all rows.

The query of a step attends to the prompt and to the tokens of its own row; the two parts are merged by their
log-sum-exp, as in `attention.py` (cascade attention; Juravsky et al., Hydragen, 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrg.modules.policy.policy import Policy
from mrg.modules.prefix.attention import PackedPrompts, SharedAttention, flash_forward
from mrg.modules.prefix.packing import Prompts, pack

CUDA_INTERVAL = 4
"""Steps between two checks for finished rows on a GPU, which has to synchronize for each check."""


def prefill(policy: Policy, prompts: Prompts) -> tuple[Tensor, PackedPrompts]:
    """Read the prompts without padding; returns their last hidden states (B, D), and their keys and values."""
    nothing = torch.zeros(0, 1, dtype=torch.long, device=prompts.mask.device)
    packed = pack(prompts, nothing, nothing.bool(), policy.base.get_input_embeddings())
    reading = PackedPrompts(packed.layout, keep=True)
    hidden = policy.hidden_packed(packed, reading, prompts.deepstack)
    ends = [stop - 1 for _, stop in packed.layout.prompts]
    return hidden[ends], reading


def next_logits(
    policy: Policy, token: Tensor, position: Tensor, step: int | Tensor, attention: SharedAttention
) -> Tensor:
    """Logits (R, V) of the next token of each row.

    Args:
        policy: The policy.
        token: (R,) int64 last token of each row.
        position: (A, R) position of each row's first token, see `Prompts`.
        step: Number of tokens before the last one; the same in all rows.
        attention: Attention of this step.
    """
    embeds = policy.base.get_input_embeddings()(token)[:, None]
    logits: Tensor = policy.base.lm_head(policy.hidden(embeds, (position + step)[..., None], None, attention)[:, -1])
    return logits


class KVCache:
    """Keys and values of B prompts and of B * S rows behind them, S for each prompt.

    Args:
        reading: Keys and values of the prompts.
        group_size: Rows behind each prompt at the start.
        max_new_tokens: Largest number of tokens of a completion.
    """

    def __init__(self, reading: PackedPrompts, group_size: int, max_new_tokens: int) -> None:
        spans = reading.layout.prompts
        lengths = [stop - start for start, stop in spans]
        self.num_prompts, self.num_places, self.step = len(spans), group_size, 0
        self.prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}
        self.absent: Tensor | None = None
        for layer in list(reading.kept):
            kept = reading.kept.pop(layer)
            padded = [
                torch.nn.utils.rnn.pad_sequence([x[0, :, a:b].transpose(0, 1) for a, b in spans], batch_first=True)
                for x in kept
            ]
            self.prompts[layer] = (padded[0].transpose(1, 2), padded[1].transpose(1, 2))
            _, num_heads, _, width = kept[0].shape
            shape = (self.num_prompts * group_size, num_heads, max_new_tokens, width)
            self.rows[layer] = (kept[0].new_zeros(shape), kept[1].new_zeros(shape))
        self.lengths = torch.tensor(lengths, device=self.prompts[0][0].device)
        self.longest = max(lengths)
        self.interval = CUDA_INTERVAL if self.lengths.device.type == "cuda" else 1
        if len(set(lengths)) > 1:
            self.absent = self._places() >= self.lengths[:, None, None, None]
        self.initial_rows = torch.arange(self.num_prompts * group_size, device=self.lengths.device)

    def read(self, policy: Policy, token: Tensor, position: Tensor, step: int) -> Tensor:
        """Logits after a token of each row, see `next_logits`."""
        return next_logits(policy, token, position, step, self.at(step))

    def at(self, step: int) -> KVCache:
        """Attention of the step that reads token number `step` of each row."""
        self.step = step
        return self

    def _places(self) -> Tensor:
        return torch.arange(self.longest, device=self.lengths.device).view(1, 1, 1, -1)

    def _unseen(self, window: int | None) -> Tensor | None:
        """(B, 1, 1, P) bool, positions of the prompts that the tokens of this step do not see."""
        if window is None or self.longest + self.step < window:
            return self.absent
        unseen = self._places() <= (self.lengths + self.step - window)[:, None, None, None]
        return unseen if self.absent is None else unseen | self.absent

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Attend to the prompt and the row, see `SharedAttention`; R is B * S and L is 1."""
        num_rows, num_heads, _, width = query.shape
        keys, values = self.rows[layer]
        keys[:, :, self.step], values[:, :, self.step] = key[:, :, 0], value[:, :, 0]
        groups = key.shape[1]
        per_group = num_heads // groups
        own = query.reshape(num_rows, groups, per_group, width)
        written = slice(0 if window is None else max(0, self.step + 1 - window), self.step + 1)
        output, own_lse = _attend(own, keys[:, :, written], values[:, :, written], scale)
        if window is not None and self.step + 1 >= window:  # the window ends before the prompt
            return output.to(query.dtype).reshape(num_rows, num_heads, 1, width)
        shape = (self.num_prompts, self.num_places, groups, per_group, width)
        asked = own.view(shape).transpose(1, 2).reshape(self.num_prompts, groups, -1, width)
        above, above_lse = _attend(asked, *self.prompts[layer], scale, self._unseen(window))
        above, above_lse = (
            x.view(self.num_prompts, groups, self.num_places, per_group, -1).transpose(1, 2).reshape(*own.shape[:3], -1)
            for x in (above, above_lse)
        )
        total = torch.logaddexp(above_lse, own_lse)
        merged = above * (above_lse - total).exp() + output * (own_lse - total).exp()
        return merged.to(query.dtype).reshape(num_rows, num_heads, 1, width)

    def compact(self, going: Tensor) -> Tensor | None:
        """Drop finished prompts and rows if that saves at least a quarter of the rows.

        Args:
            going: (B * S,) bool, True for unfinished rows.

        Returns:
            Indices of the rows that remain, or None if all do.
        """
        writing = going.view(self.num_prompts, self.num_places)
        counts = writing.sum(1)
        prompts = counts.nonzero()[:, 0]
        num_places = int(counts.max())
        if 4 * len(prompts) * num_places > 3 * len(going):
            return None
        places = writing[prompts].int().argsort(stable=True, dim=1, descending=True)[:, :num_places]
        keep: Tensor = (prompts[:, None] * self.num_places + places).flatten()
        for layer, (keys, values) in self.rows.items():
            self.rows[layer] = (keys[keep], values[keep])
        if len(prompts) < self.num_prompts:
            self.prompts = {layer: (k[prompts], v[prompts]) for layer, (k, v) in self.prompts.items()}
            self.absent = None if self.absent is None else self.absent[prompts]
            self.lengths = self.lengths[prompts]
        self.num_prompts, self.num_places = len(prompts), num_places
        return keep


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, absent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention without a causal mask, and its log-sum-exp: (…, L, d) and (…, L, 1)."""
    if query.device.type != "cpu":
        return by_products(query, key, value, scale, absent)
    mask = None
    if absent is not None:
        mask = torch.zeros(absent.shape, dtype=query.dtype).masked_fill(absent, -torch.inf)
        mask = mask.expand(-1, -1, query.shape[2], -1)
    output, lse = flash_forward(query, key, value, 0.0, False, attn_mask=mask, scale=scale)
    return output, lse[..., None]


def by_products(
    query: Tensor, key: Tensor, value: Tensor, scale: float, absent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same on any device; there are few queries for many keys, so their products are small."""
    products = scores(query, key, scale)
    if absent is not None:
        products = products.masked_fill(absent, -torch.inf)
    lse = products.logsumexp(-1, keepdim=True)
    return (products - lse).exp().to(value.dtype) @ value, lse


def scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(…, L, S) products of queries and keys, in float32 or float64.

    A kernel that fuses the softmax never rounds them. A product in bfloat16 would, by up to 0.4 %, which is 0.4 nats
    for a score of 100. So the keys, which are small compared with a layer's weights, are cast; TF32, if it is allowed,
    does not round values of half precision.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        products: Tensor = query.to(exact) @ key.to(exact).transpose(-1, -2)
    return products * scale
