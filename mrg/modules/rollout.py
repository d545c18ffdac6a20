"""Sampling: the prompt is read once per study, then its group decodes together (see `decoding.py`)."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.modules.decoding import prefill
from mrg.modules.policy import Policy
from mrg.modules.prompts import Prompts
from mrg.modules.sharding import gathered


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

    def trimmed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask of some rows, as wide as the longest of them."""
        mask = self.completion_mask[rows]
        longest = int(mask.sum(1).max())
        return self.completion_ids[rows, :longest], mask[:, :longest]


def replace_groups(rollout: Rollout, again: Rollout, groups: Tensor, group_size: int, pad_id: int) -> Rollout:
    """A rollout with some groups replaced.

    Args:
        rollout: N completions.
        again: As many groups as are replaced.
        groups: Which ones.
        group_size: Completions per study.
        pad_id: Fills rows after their end.
    """
    rows = (groups[:, None] * group_size + torch.arange(group_size)).flatten().to(rollout.completion_ids.device)
    width = max(rollout.completion_ids.shape[1], again.completion_ids.shape[1])
    result = []
    for old, new, fill in (
        (rollout.completion_ids, again.completion_ids, pad_id),
        (rollout.completion_mask, again.completion_mask, False),
        (rollout.old_logps, again.old_logps, 0.0),
    ):
        whole = F.pad(old, (0, width - old.shape[1]), value=fill)
        whole[rows] = F.pad(new, (0, width - new.shape[1]), value=fill)
        result.append(whole)
    texts, truncated = list(rollout.texts), rollout.truncated.clone()
    for row, text in zip(rows.tolist(), again.texts, strict=True):
        texts[row] = text
    truncated[rows] = again.truncated
    ids, mask, logps = result
    return Rollout(ids, mask, logps, texts, truncated)


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
        with gathered(policy), policy.merged():
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
    head, embedding = policy.base.lm_head, policy.base.get_input_embeddings()
    num_prompts, device = len(prompts.mask), prompts.embeds.device
    num_rows = num_prompts * group_size
    hidden, decoding = prefill(policy, prompts, group_size, max_new_tokens)
    hidden = hidden.repeat_interleave(group_size, 0)
    position = prompts.next_position.repeat_interleave(group_size)
    banned = torch.tensor(policy.banned_ids, device=device)
    # Rows that still write, in as many places for each of the remaining prompts; a finished row may fill a place.
    rows = torch.arange(num_rows, device=device)
    going = torch.ones(num_rows, dtype=torch.bool, device=device)
    ids = torch.full((num_rows, max_new_tokens), policy.pad_id, device=device)
    mask = torch.zeros(num_rows, max_new_tokens, dtype=torch.bool, device=device)
    logps = torch.zeros(num_rows, max_new_tokens, device=device)
    for step in range(max_new_tokens):
        logits = head(hidden).float()
        logits[:, banned] = -torch.inf
        log_probs = torch.log_softmax(logits / (temperature or 1.0), -1)
        scores = log_probs
        if temperature:
            # Noise for every row, also finished ones: a completion does not depend on when the others end.
            noise = torch.empty(num_rows, log_probs.shape[1], device=device).exponential_(generator=generator)
            scores = log_probs - noise[rows].log()
        token = scores.argmax(-1)
        ids[rows[going], step] = token[going]
        logps[rows[going], step] = log_probs.gather(1, token[:, None])[going, 0]
        mask[rows[going], step] = True
        going = going & (token != policy.eos_id)
        if step == max_new_tokens - 1 or not bool(going.any()):
            break
        keep = decoding.compact(going)
        if keep is not None:
            rows, going, token, position = rows[keep], going[keep], token[keep], position[keep]
        positions = (position + step).view(1, -1, 1).expand(len(prompts.positions), -1, -1)
        hidden = policy.hidden(embedding(token)[:, None], positions, None, decoding.at(step))[:, -1]
    length = int(mask.sum(1).max())
    ids, mask, logps = ids[:, :length], mask[:, :length], logps[:, :length]
    ended = ((ids == policy.eos_id) & mask).any(1)
    tokenizer = policy.processor.tokenizer
    texts = [tokenizer.decode(row[keep], skip_special_tokens=True).strip() for row, keep in zip(ids, mask, strict=True)]
    return Rollout(ids, mask, logps, texts, ~ended)
