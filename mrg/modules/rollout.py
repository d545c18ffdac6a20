"""Sampling: the prompt is read once per study, then its group decodes together."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mrg.modules.policy import Policy, Prompts


@dataclasses.dataclass
class Rollout:
    """N completions, row n of study n // group_size.

    Args:
        completion_ids: (N, C) int64; padded on the right after the end token.
        completion_mask: (N, C) bool, True up to and including the end token.
        old_logps: (N, C) float32 as captured while sampling; 0 where the mask is False.
        texts: N strings.
        truncated: (N,) bool, True where no end token was reached.
    """

    completion_ids: Tensor
    completion_mask: Tensor
    old_logps: Tensor
    texts: list[str]
    truncated: Tensor


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Draw `group_size` completions per study from the tempered distribution over the allowed tokens.

    The model is put in eval mode meanwhile: dropout or gradient checkpointing would sample from another policy.

    Args:
        policy: Who writes.
        prompts: B prompts.
        group_size: Completions per study.
        max_new_tokens: Length limit.
        temperature: 0 takes the likeliest token.
        generator: Source of randomness, on the prompts' device.
    """
    was_training = policy.training
    policy.eval()
    try:
        return _decode(policy, prompts, group_size, max_new_tokens, temperature, generator)
    finally:
        policy.train(was_training)


def _decode(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
) -> Rollout:
    from transformers import DynamicCache

    base = policy.base
    embedding = base.get_input_embeddings()
    cache = DynamicCache(config=base.config.text_config)
    hidden = policy.hidden(prompts.embeds, prompts.positions, prompts.mask.long(), cache)
    cache.batch_repeat_interleave(group_size)
    hidden = hidden[:, -1].repeat_interleave(group_size, 0)
    attention = prompts.mask.repeat_interleave(group_size, 0).long()
    position = prompts.next_position.repeat_interleave(group_size)
    num_rows = hidden.shape[0]
    banned = policy.banned_ids
    rows = torch.arange(num_rows, device=hidden.device)  # rows that still write
    ids = torch.full((num_rows, max_new_tokens), policy.pad_id, device=hidden.device)
    logps = torch.zeros(num_rows, max_new_tokens, device=hidden.device)
    mask = torch.zeros(num_rows, max_new_tokens, dtype=torch.bool, device=hidden.device)
    for step in range(max_new_tokens):
        logits = base.lm_head(hidden).float()
        logits[:, banned] = -torch.inf
        log_probs = torch.log_softmax(logits / (temperature or 1.0), -1)
        if temperature:
            token = torch.multinomial(log_probs.exp(), 1, generator=generator)
        else:
            token = log_probs.argmax(-1, keepdim=True)
        ids[rows, step] = token[:, 0]
        logps[rows, step] = log_probs.gather(1, token)[:, 0]
        mask[rows, step] = True
        going = token[:, 0] != policy.eos_id
        if step == max_new_tokens - 1 or not bool(going.any()):
            break
        if not bool(going.all()):
            # Finished rows leave the batch, so that late steps cost only what is still being written.
            keep = going.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, token, attention, position = rows[keep], token[keep], attention[keep], position[keep]
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], 1)
        positions = (position + step).view(1, -1, 1).expand(3, -1, -1)
        hidden = policy.hidden(embedding(token), positions, attention, cache)[:, -1]
    length = int(mask.sum(1).max())
    ids, mask, logps = ids[:, :length], mask[:, :length], logps[:, :length]
    ended = ((ids == policy.eos_id) & mask).any(1)
    tokenizer = policy.processor.tokenizer
    texts = [tokenizer.decode(row[keep], skip_special_tokens=True).strip() for row, keep in zip(ids, mask, strict=True)]
    return Rollout(ids, mask, logps, texts, ~ended)
