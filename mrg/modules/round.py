"""What is computed of a round before its optimizer steps: completions, rewards, advantages, and passes over these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.modules.completion import encode_targets, target_text
from mrg.modules.policy.load import policy_digest
from mrg.modules.policy.logps import TokenLogps
from mrg.modules.policy.ranks import failing_together, full, gather, mean_over_ranks, most_of_ranks
from mrg.modules.prefix.packing import Prompts
from mrg.modules.rewarded import RewardedModule
from mrg.modules.rl.advantage import equal_groups, group_advantages
from mrg.modules.rl.batch import MicroBatch, micro_batches
from mrg.modules.rl.credit import finding_credit
from mrg.modules.rl.decoupled import decoupled_terms, part_statistics, scaled
from mrg.modules.rl.entropy import entropy_threshold
from mrg.modules.rl.monitor import Monitor
from mrg.modules.rl.overlong import with_overlong
from mrg.modules.rl.reference import bad_groups, with_references
from mrg.modules.rl.reward import Rewards, replace_rewards
from mrg.modules.rl.settings import LossSettings
from mrg.modules.rollout.ahead import Ahead
from mrg.modules.rollout.engines import Engine, note_engine
from mrg.modules.rollout.sampling import Rollout, group_rows, replace_groups, sample
from mrg.modules.settings import KLSettings, RolloutSettings


class RoundModule(RewardedModule):
    """A `RewardedModule` that computes what a round needs."""

    kl: KLSettings
    loss_settings: LossSettings
    micro_batch_tokens: int
    monitor: Monitor
    temperature: float
    adds_references: bool
    reference_share: float
    rollout_settings: RolloutSettings
    weights_studies = True
    reference_identity = ""
    engine: Engine | None = None
    ahead: Ahead | None = None
    """Rollouts of later rounds, if servers sample them already."""

    @property
    def round_index(self) -> int:
        """Index of this round; unlike the step's it also counts rounds whose step was skipped, and it is resumed."""
        return self.trainer.fit_loop.total_batch_idx

    def keep_intact(self) -> None:
        """Note that the state before this round can be saved, because it has changed nothing."""
        self.intact = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save which reference and engine there were, as neither is saved itself, and what was sampled ahead."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["engine"] = "" if self.engine is None else self.engine.version
        checkpoint["reference"] = self._reference()
        if self.ahead is not None:
            checkpoint["ahead"] = gather(self.ahead.state_dict(), self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note if another engine samples from now on; what the earlier one sampled ahead is used.

        Raises:
            UserError: If the reference is a copy of other weights.
        """
        super().on_load_checkpoint(checkpoint)
        if (own := self._reference()) and checkpoint.get("reference", own) not in ("", own):
            raise UserError(
                f"The weights in {self.source} have changed since the run started from them: they are its reference "
                "model (kl.reference copy). Restore them, or start a new run from its policy with "
                "model.init_args.policy."
            )
        note_engine(checkpoint.get("engine"), self.engine)
        if self.ahead is not None and "ahead" in checkpoint:
            self.ahead.load_state_dict(checkpoint["ahead"], self.global_rank)

    def _reference(self) -> str:
        """Fingerprint of a copied reference model, empty if there is none; if it is sharded, all ranks call this."""
        weights = self.policy.reference_weights.items()
        if weights and not self.reference_identity:
            whole = ((name, full(value)) for name, value in weights)
            self.reference_identity = policy_digest(whole, self.policy.processor.tokenizer)
        return self.reference_identity

    def rollout(self, prompts: Prompts, batch: Batch, groups: Sequence[int] = (), attempt: int = 0) -> Rollout:
        """Sample a group of completions per study; a function of (seed, rank, round, attempt) and the policy.

        Args:
            prompts: Prompts of the studies to sample for.
            batch: All studies of the round.
            groups: Indices of the studies in the batch; all of them by default.
            attempt: 0, or the number of the attempt if groups are sampled again.
        """
        seed, options = self._seed(self.round_index, attempt), self._sampling()
        if self.engine is None:
            generator = torch.Generator(self.device).manual_seed(seed)
            return sample(self.policy, prompts, *options, generator, self.decoder)
        if not attempt:
            if self.ahead is not None:
                written = self.ahead.take(self.round_index, batch, self.device)
                if written is not None:
                    if self.ahead.client.adapter is None:  # after a resume; groups may be sampled again
                        self.engine.synchronize(self.round_index, self.trainer)
                    return written
            self.engine.synchronize(self.round_index, self.trainer)
        return self.engine.sample(batch, self._seeds(seed, groups or range(len(batch))), *options)

    def sample_ahead(self, batch: Batch) -> None:
        """Let the servers sample the round after this one, with the policy as it is; all ranks call this.

        By now the ranks have agreed that none has failed, and none waits for the adapter that is replaced.
        """
        if self.ahead is None or self.engine is None or self.trainer.is_last_batch:  # of the epoch
            return
        if batch.ahead is not None:
            self.engine.synchronize(self.round_index, self.trainer)
            following, studies = self.round_index + 1, range(len(batch.ahead))
            self.ahead.start(following, batch.ahead, self._seeds(self._seed(following), studies), self._sampling())

    def _sampling(self) -> tuple[int, int, float]:
        return self.rollout_settings.group_size, self.max_new_tokens, self.rollout_settings.temperature

    def _seed(self, round_index: int, attempt: int = 0) -> int:
        # All ranks have the same seed in Lightning, but must not sample the same completions.
        return hash((self.rollout_settings.seed, self.global_rank, round_index, attempt)) % 2**63

    @staticmethod
    def _seeds(seed: int, groups: Sequence[int]) -> Mapping[int, int]:
        return {group: hash((seed, group)) for group in groups}

    def resample(self, prompts: Prompts, batch: Batch, rollout: Rollout, rewards: Rewards) -> tuple[Rollout, Rewards]:
        """Sample groups of equal rewards again, at most `rollout.resample_dead` times (after Yu et al., DAPO, 2025).

        Groups with fewer than two rewards are left: if a reward does not apply to a study, it will not apply to other
        completions of the study either.
        """
        for attempt in range(1, self.rollout_settings.resample_dead + 1):
            dead = equal_groups(self.signal(rewards), self.group_size, rewards.scored).nonzero()[:, 0]
            if not len(dead):
                break
            groups = dead.tolist()
            with self.monitor.phase("rollout"):
                again = self.rollout(prompts.rows(dead.to(self.device)), batch, groups, attempt)
            rollout = replace_groups(rollout, again, dead, self.group_size, self.policy.pad_id)
            with self.monitor.phase("reward"):
                rewards = replace_rewards(
                    rewards, self.rewards(again, batch, groups), group_rows(dead, self.group_size)
                )
        return rollout, rewards

    def rewards(self, rollout: Rollout, batch: Batch, groups: Sequence[int] = ()) -> Rewards:
        """Rewards of the completions of some groups of the batch, of all of them by default."""
        studies = [study for study in groups or range(len(batch)) for _ in range(self.group_size)]  # N
        return self.rewards_of(rollout.texts, rollout.completion_mask.sum(1).cpu(), batch, studies)

    def rewards_of(self, texts: Sequence[str], length: Tensor, batch: Batch, studies: Sequence[int]) -> Rewards:
        """Rewards of N completions with `length` (N,) tokens, of these studies of the batch."""
        target, study_id = [batch.target[i] for i in studies], [batch.study_id[i] for i in studies]
        rewards = self.reward(texts, target, study_id)
        settings = self.reward_settings
        if not settings.overlong_weight:
            return rewards
        return with_overlong(rewards, length, self.max_new_tokens, settings.overlong_cache, settings.overlong_weight)

    def signal(self, rewards: Rewards, size: int = 0) -> Tensor:
        """(N,) what completions of groups of `size` are compared by: the reward, or the sum of its normalized parts."""
        if not self.decoupled:
            return rewards.total
        terms = decoupled_terms(rewards.parts, self.part_weights, size or self.group_size, rewards.present)
        return torch.stack(list(terms.values())).sum(0)

    def advantages(self, rewards: Rewards, importance: Tensor | None = None) -> Tensor:
        """Advantages (N,) of the completions of this rank, times the importance (B,) of their studies."""
        found = self._advantages(rewards).to(self.device)
        return found if importance is None else found * importance.repeat_interleave(self.group_size)

    def _advantages(self, rewards: Rewards) -> Tensor:
        signal, deviation = self.signal(rewards), None
        if self.decoupled or self.advantage_scale == "batch":
            own = signal if rewards.scored is None else signal[rewards.scored]
            values = torch.cat(gather(own, self.trainer.world_size))
            deviation = float(values.std()) if len(values) > 1 else None
        if self.decoupled:
            return scaled(signal, deviation or 0.0, rewards.scored)
        options = self.group_size, self.advantage_scale
        return group_advantages(signal, *options, present=rewards.scored, deviation=deviation)

    def credit(self, rollout: Rollout, rewards: Rewards, advantages: Tensor) -> Tensor:
        """Advantages (N,) as they are, or (N, C) of tokens if they are spread by finding."""
        if not self.spreads_credit:
            return advantages
        mask = rollout.completion_mask.cpu()
        completions = [ids[: int(mask[row].sum())].tolist() for row, ids in enumerate(rollout.completion_ids.cpu())]
        credit, covered = finding_credit(
            self.reward, rewards, advantages, self.group_size, rollout.texts, completions, mask.shape[1],
            self.policy.processor.tokenizer,
        )  # fmt: skip
        live = advantages.view(-1, self.group_size).any(1).repeat_interleave(self.group_size).cpu()
        counts = (float(part.sum()) for part in (covered, mask[live]))
        stated, total = (mean_over_ranks(count, self.trainer.world_size, self.device) for count in counts)
        self.evidence_share = stated / max(total, 1)
        return credit

    def part_statistics(self, rewards: Rewards) -> dict[str, float]:
        """Log keys of what each part adds to the advantages of all ranks; none if the sum is normalized."""
        if not self.decoupled:
            return {}
        terms = decoupled_terms(rewards.parts, self.part_weights, self.group_size, rewards.present)
        return part_statistics(terms, rewards.parts, self.group_size, rewards.present)

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
        """(N, C) log-probabilities and entropies of the policy as it samples, without dropout, of some groups.

        They are 0 where there is no token.
        """
        was_training = self.policy.training
        self.policy.eval()
        found = TokenLogps(*(torch.zeros_like(rollout.old_logps) for _ in range(2)))  # (N, C) each
        for part in self.micro_batches(range(len(prompts.mask)) if groups is None else groups, prompts, rollout):
            tokens = self.policy.logps(prompts.rows(part.groups), part.completion_ids, part.mask, self.temperature)
            for whole, values in zip(found, tokens, strict=True):
                whole[part.rows, : part.mask.shape[1]] = values.to(whole.dtype)  # (n, c)
        self.policy.train(was_training)
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
        size = self.group_size
        with failing_together(self.trainer.world_size, self.keep_intact):
            groups, ids, texts, own = self.references(batch, rewards, size)
        self.reference_share = mean_over_ranks(len(groups) / len(batch), self.trainer.world_size, self.device)
        if groups:
            rollout = with_references(rollout, groups, ids, texts, size, self.policy.pad_id)
            rewards = replace_rewards(rewards, own, torch.tensor(groups) * size)
        if self.reference_share:
            first = torch.tensor(groups, dtype=torch.long, device=rollout.old_logps.device) * size
            rollout.old_logps[first] = self.round_values(prompts, rollout, groups).logps[first]
        return rollout, rewards

    def references(
        self, batch: Batch, rewards: Rewards, size: int
    ) -> tuple[list[int], list[list[int]], list[str], Rewards]:
        """Groups of `size` completions that take their reference, and its token ids, text and rewards for each."""
        labels, policy = rewards.labels[1][::size], self.policy  # (B, 14)
        targets = [target_text(text, row, self.think) for text, row in zip(batch.target, labels, strict=True)]
        ids = encode_targets(policy, targets)
        banned, tokenizer = set(policy.banned_ids), policy.processor.tokenizer
        fits = torch.tensor([len(row) <= self.max_new_tokens and banned.isdisjoint(row) for row in ids])
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
        own = self.rewards_of(texts, torch.tensor([len(row) for row in ids]), batch, range(len(batch)))
        dead = equal_groups(self.signal(rewards, size), size, rewards.scored)
        groups = bad_groups(rewards.total, own.total, size, dead & fits)
        taken = own.take(torch.tensor(groups, dtype=torch.long))
        return groups, [ids[k] for k in groups], [texts[k] for k in groups], taken

    def update_corpus(self, rewards: Rewards, importance: Tensor | None = None) -> None:
        """Take the round into the corpus F1: what the policy has written, without reference reports in its place.

        Args:
            rewards: Rewards of the completions of this rank.
            importance: (B,) importance of their studies.
        """
        if self.corpus:
            weights = torch.ones(len(rewards.total) // self.group_size) if importance is None else importance.cpu()
            own = (*rewards.labels, weights.repeat_interleave(self.group_size))
            rows = [torch.cat(parts) for parts in zip(*gather(own, self.trainer.world_size), strict=True)]
            for scorer in self.corpus.values():
                scorer.update(*rows)

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

    def settings_values(self) -> dict[str, float]:
        """Log keys of what settings change during training."""
        values = {}
        if self.spreads_credit:
            values["train/evidence"] = self.evidence_share
        if self.entropy_bonus.settings.target is not None:
            values["train/entropy_coef"] = self.entropy_bonus.coef
        if self.adds_references:
            values["train/references"] = self.reference_share
        if self.ahead is not None:
            values["train/rollout_age"] = float(self.ahead.age)
        return values
