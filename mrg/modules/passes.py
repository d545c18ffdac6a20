"""Forward passes over the completions of a round, in micro-batches of whole groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.modules.completion import encode_targets, target_text
from mrg.modules.policy.logps import TokenLogps
from mrg.modules.policy.ranks import gather, mean_over_ranks, most_of_ranks
from mrg.modules.prefix.packing import Prompts
from mrg.modules.rewarded import RewardedModule
from mrg.modules.rl.advantage import equal_groups
from mrg.modules.rl.batch import MicroBatch, micro_batches
from mrg.modules.rl.entropy import entropy_threshold
from mrg.modules.rl.reference import bad_groups, with_references
from mrg.modules.rl.reward import Rewards, replace_rewards
from mrg.modules.rl.settings import LossSettings
from mrg.modules.rollout.sampling import Rollout
from mrg.modules.settings import KLSettings


class PassModule(RewardedModule):
    """A `RewardedModule` that computes values of all tokens of a round."""

    kl: KLSettings
    loss_settings: LossSettings
    micro_batch_tokens: int
    temperature: float
    adds_references: bool
    reference_share: float

    @torch.no_grad()
    def reference_logps(self, prompts: Prompts, rollout: Rollout, batch: Batch) -> Tensor | None:
        """(N, C) log-probabilities of the reference model, or None without a KL term."""
        if not self.kl.coef:
            return None
        with self.policy.reference():
            if not self.policy.has_adapter:
                prompts = self.policy.embed(batch)  # a copy has its own embeddings
            return self.round_values(prompts, rollout).logps

    @torch.no_grad()
    def round_values(self, prompts: Prompts, rollout: Rollout, groups: Sequence[int] | None = None) -> TokenLogps:
        """(N, C) log-probabilities and entropies of the policy as it is, of some groups; 0 where there is no token."""
        found = TokenLogps(*(torch.zeros_like(rollout.old_logps) for _ in range(2)))  # (N, C) each
        for part in self.micro_batches(range(len(prompts.mask)) if groups is None else groups, prompts, rollout):
            tokens = self.policy.logps(prompts.rows(part.groups), part.completion_ids, part.mask, self.temperature)
            for whole, values in zip(found, tokens, strict=True):
                whole[part.rows, : part.mask.shape[1]] = values.to(whole.dtype)  # (n, c)
        return found

    def micro_batches(self, groups: Sequence[int], prompts: Prompts, rollout: Rollout) -> list[MicroBatch]:
        """Micro-batches of some groups; with dummies at the end if ranks share layers and others have more."""
        shared = self.policy.shares(rollout.completion_ids.shape[1], several=True)
        num_tokens = self.num_group_tokens(prompts, rollout, 1 if shared else self.group_size)
        parts = micro_batches(groups, num_tokens, self.micro_batch_tokens)
        num_dummies = most_of_ranks(len(parts), self.device) - len(parts) if self.policy.sharded else 0
        return [
            *(MicroBatch.of(rollout, part, self.group_size) for part in parts),
            *(MicroBatch.of(rollout, [0], self.group_size, weight=0.0) for _ in range(num_dummies)),
        ]

    def num_group_tokens(self, prompts: Prompts, rollout: Rollout, copies: int = 1) -> list[int]:
        """Tokens of each group with this many copies of its prompt; a packed row has one."""
        completions = rollout.completion_mask.sum(1).view(-1, self.group_size).sum(1)  # (B,)
        return (copies * prompts.mask.sum(1) + completions).tolist()

    def add_references(
        self, prompts: Prompts, batch: Batch, rollout: Rollout, rewards: Rewards
    ) -> tuple[Rollout, Rewards]:
        """Let reference reports take the place of completions, see `mrg.modules.rl.reference`; all ranks call this."""
        if not self.adds_references:
            return rollout, rewards
        size, policy = self.group_size, self.policy
        labels = rewards.labels[1][::size]  # (B, 14)
        targets = [target_text(text, row, self.think) for text, row in zip(batch.target, labels, strict=True)]
        ids = encode_targets(policy, targets)
        banned, tokenizer = set(policy.banned_ids), policy.processor.tokenizer
        fits = torch.tensor([len(row) <= self.max_new_tokens and banned.isdisjoint(row) for row in ids])
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
        own = self.rewards_of(texts, torch.tensor([len(row) for row in ids]), batch, range(len(batch)))
        dead = equal_groups(self.signal(rewards), size, rewards.scored)
        groups = bad_groups(rewards.total, own.total, size, dead & fits)
        self.reference_share = mean_over_ranks(len(groups) / len(batch), self.trainer.world_size, self.device)
        if groups:
            rollout = with_references(
                rollout, groups, [ids[k] for k in groups], [texts[k] for k in groups], size, policy.pad_id
            )
            rows = torch.tensor(groups)
            rewards = replace_rewards(rewards, own.take(rows), rows * size)
        if self.reference_share:
            first = torch.tensor(groups, dtype=torch.long, device=rollout.old_logps.device) * size
            rollout.old_logps[first] = self.round_values(prompts, rollout, groups).logps[first]
        return rollout, rewards

    @torch.no_grad()
    def uncertain_tokens(self, prompts: Prompts, rollout: Rollout) -> Tensor | None:
        """(N, C) bool, True at the tokens with the highest entropy of the round; None if all tokens count."""
        share = self.loss_settings.entropy.top_quantile
        if share == 1:
            return None
        mask = rollout.completion_mask & rollout.counted(self.loss_settings.mask_truncated)[:, None]
        entropy = self.round_values(prompts, rollout).entropy
        threshold = entropy_threshold(torch.cat(gather(entropy[mask].cpu(), self.trainer.world_size)), share)
        return mask & (entropy >= threshold)
