"""Forward passes over the completions of a round, in micro-batches of whole groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.modules.policy.logps import TokenLogps
from mrg.modules.policy.ranks import gather, most_of_ranks
from mrg.modules.prefix.packing import Prompts
from mrg.modules.rewarded import RewardedModule
from mrg.modules.rl.batch import MicroBatch, micro_batches
from mrg.modules.rl.entropy import entropy_threshold
from mrg.modules.rl.settings import LossSettings
from mrg.modules.rollout.sampling import Rollout
from mrg.modules.settings import KLSettings


class PassModule(RewardedModule):
    """A `RewardedModule` that computes values of all tokens of a round."""

    kl: KLSettings
    loss_settings: LossSettings
    micro_batch_tokens: int
    temperature: float

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
    def round_values(self, prompts: Prompts, rollout: Rollout) -> TokenLogps:
        """(N, C) log-probabilities and entropies of the policy as it is; 0 where there is no token."""
        found = TokenLogps(*(torch.zeros_like(rollout.old_logps) for _ in range(2)))  # (N, C) each
        for part in self.micro_batches(range(len(prompts.mask)), prompts, rollout):
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
