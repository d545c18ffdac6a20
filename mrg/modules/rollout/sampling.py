"""Sampling: the prompt of a study is read once, and its group is decoded together, see `kv_cache.py`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.modules.policy.policy import Policy
from mrg.modules.policy.ranks import gathered
from mrg.modules.prefix.packing import Prompts
from mrg.modules.rollout.kv_cache import KVCache, prefill
from mrg.modules.rollout.static_cache import StaticDecoder, StaticKVCache


@dataclasses.dataclass
class Rollout:
    """N completions; row n belongs to study n // group_size.

    Args:
        completion_ids: (N, C) int64 tokens, padded on the right after the end token.
        completion_mask: (N, C) bool, True up to and including the end token.
        old_logps: (N, C) float32 log-probabilities at sampling time; 0 where the mask is False.
        texts: N decoded completions.
        truncated: (N,) bool, True for completions without an end token.
    """

    completion_ids: Tensor
    completion_mask: Tensor
    old_logps: Tensor
    texts: list[str]
    truncated: Tensor

    def counted(self, mask_truncated: bool) -> Tensor:
        """(N,) bool, True for completions that enter the loss."""
        return ~self.truncated if mask_truncated else torch.ones_like(self.truncated)

    def take(self, rows: list[int]) -> Rollout:
        """The completions of some rows."""
        texts = [self.texts[row] for row in rows]
        ids, mask, logps = (x[rows] for x in (self.completion_ids, self.completion_mask, self.old_logps))
        return Rollout(ids, mask, logps, texts, self.truncated[rows])


def group_rows(groups: Tensor, group_size: int) -> Tensor:
    """Rows of the completions of some groups, on the device of the groups."""
    return (groups[:, None] * group_size + torch.arange(group_size, device=groups.device)).flatten()


def replace_groups(rollout: Rollout, again: Rollout, groups: Tensor, group_size: int, pad_id: int) -> Rollout:
    """Replace some groups of a rollout."""
    rows = group_rows(groups, group_size).to(rollout.completion_ids.device)
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
    decoder: StaticDecoder | None = None,
) -> Rollout:
    """Sample `group_size` completions per study from the tempered distribution over the allowed tokens.

    The model is in evaluation mode meanwhile: with dropout or gradient checkpointing it would be another policy.

    Args:
        policy: The policy.
        prompts: B prompts.
        group_size: Completions per study.
        max_new_tokens: Largest number of tokens of a completion.
        temperature: Sampling temperature; 0 takes the most likely token.
        generator: Source of randomness, on the device of the prompts.
        decoder: Decoder with a static KV cache, whose steps may be compiled; without one, the cache shrinks as rows
            finish.
    """
    was_training = policy.training
    policy.eval()
    try:
        with gathered(policy), policy.merged(), _ordinary_tensors(decoder is not None):
            return _decode(policy, prompts, group_size, max_new_tokens, temperature, generator, decoder)
    finally:
        policy.train(was_training)


@contextlib.contextmanager
def _ordinary_tensors(needed: bool) -> Iterator[None]:
    """Leave inference mode, in which evaluation runs: its tensors could not be written to in training."""
    if not needed:
        yield
        return
    with torch.inference_mode(False), torch.no_grad():  # the first alone would record gradients
        yield


def _decode(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    decoder: StaticDecoder | None,
) -> Rollout:
    num_prompts, device = len(prompts.mask), prompts.embeds.device
    num_rows = num_prompts * group_size
    hidden, reading = prefill(policy, prompts)
    if decoder is None:
        cache: KVCache | StaticKVCache = KVCache(reading, group_size, max_new_tokens)
    else:
        cache = decoder.start(policy, reading, group_size, max_new_tokens)
    # Unfinished rows, the same number for each remaining prompt; finished rows, and the dummy row N, may fill up.
    rows = cache.initial_rows
    going = rows < num_rows
    prompt = (rows // group_size).clamp(max=num_prompts - 1)
    position = prompts.next_position[prompt].repeat(len(prompts.positions), 1)
    logits = policy.base.lm_head(hidden[prompt])
    banned = torch.tensor(policy.banned_ids, dtype=torch.long, device=device)
    ids = torch.full((num_rows + 1, max_new_tokens), policy.pad_id, device=device)
    mask = torch.zeros(num_rows + 1, max_new_tokens, dtype=torch.bool, device=device)
    logps = torch.zeros(num_rows + 1, max_new_tokens, device=device)
    for step in range(max_new_tokens):
        # Not in place: a captured graph owns its output.
        logits = logits.float().index_fill(1, banned, -torch.inf)
        log_probs = torch.log_softmax(logits / (temperature or 1.0), -1)
        scores = log_probs
        if temperature:
            # Noise for every row, finished ones too: a completion does not depend on when others finish.
            noise = torch.empty(num_rows, log_probs.shape[1], device=device).exponential_(generator=generator)
            scores = log_probs - noise[rows.clamp(max=num_rows - 1)].log()
        token = scores.argmax(-1)
        # For finished rows, this writes the values that are there already.
        ids[rows, step] = token.where(going, policy.pad_id)
        logps[rows, step] = log_probs.gather(1, token[:, None])[:, 0].where(going, 0.0)
        mask[rows, step] = going
        going = going & (token != policy.eos_id)
        if step == max_new_tokens - 1:
            break
        if (step + 1) % cache.interval == 0:
            if not bool(going.any()):
                break
            keep = cache.compact(going)
            if keep is not None:
                rows, going, token, position = rows[keep], going[keep], token[keep], position[:, keep]
        logits = cache.read(policy, token, position, step)
    length = int(mask[:num_rows].sum(1).max())
    ids, mask, logps = (x[:num_rows, :length] for x in (ids, mask, logps))
    ended = ((ids == policy.eos_id) & mask).any(1)
    tokenizer = policy.processor.tokenizer
    texts = [tokenizer.decode(row[keep], skip_special_tokens=True).strip() for row, keep in zip(ids, mask, strict=True)]
    return Rollout(ids, mask, logps, texts, ~ended)
