"""Group relative policy optimisation on a clinical reward (Shao et al., 2024; MRG-R1, 2025).

A round: the policy writes `group_size` completions for each study, each is rewarded, and its advantage over its group
weighs its gradient. What a study's completions share is computed once, in the rollout as in the loss: its images and
its prompt.

Choices: a round that makes one optimiser step takes the policy's own log-probabilities as the old ones, so the ratio
is exactly 1; a round of several takes the rollout's. The reference is the policy with its adapter off, or a copy of its
start. A loss is normalised by the whole step, so its value does not depend on how the step is cut. Without a KL term,
groups of equal rewards send no gradient and are not computed. Left out: value networks.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.modules.base import ReportModule
from mrg.modules.policy.fsdp import clip_gradients, gathered, local_gradients, most_of_ranks
from mrg.modules.prefix.prompts import Prompts
from mrg.modules.ranks import any_rank, failing_together, gather, mean_over_ranks
from mrg.modules.rl.advantage import equal_groups, group_advantages
from mrg.modules.rl.batch import Step, check_round, micro_batches, minibatches
from mrg.modules.rl.correction import correction_weights
from mrg.modules.rl.loss import grpo_loss
from mrg.modules.rl.monitor import BY_STEP, Monitor, Outcome, first_group
from mrg.modules.rl.reward import Reward, Rewards, replace_rewards
from mrg.modules.rollout.sampling import Rollout, group_rows, replace_groups, sample
from mrg.modules.rollout.vllm import NO_ADAPTER, ServerRollout, connect
from mrg.modules.settings import (
    KLSettings,
    LossSettings,
    RewardSettings,
    RolloutSettings,
    check_counts,
    check_reference,
)


class GRPOModule(ReportModule):
    """Grouped rollouts, a reward, group advantages, a clipped loss.

    Args:
        rollout: How completions are sampled.
        reward: Weights of the parts of the reward.
        kl: KL term of the loss and its reference model.
        loss: Policy loss and advantages.
        micro_batch_tokens: Tokens of one forward and backward pass: prompts, each once, and completions. A group is
            never cut. Lower it where memory runs out.
        num_minibatches: Optimiser steps into which the studies of a round are cut.
        num_iterations: Passes over the studies of a round.
        sample_every: Rounds between two groups that are written to samples.jsonl; 0 writes none.
        **kwargs: See `ReportModule`.
    """

    def __init__(
        self,
        rollout: RolloutSettings = RolloutSettings(),
        reward: RewardSettings = RewardSettings(),
        kl: KLSettings = KLSettings(),
        loss: LossSettings = LossSettings(),
        micro_batch_tokens: int = 16_384,
        num_minibatches: int = 1,
        num_iterations: int = 1,
        sample_every: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_counts(
            {
                "micro_batch_tokens": (micro_batch_tokens, 1),
                "num_minibatches": (num_minibatches, 1),
                "num_iterations": (num_iterations, 1),
                "sample_every": (sample_every, 0),
            }
        )
        check_reference(kl, self.train_vision, self.lora)
        if rollout.servers is not None and self.lora is None:
            raise UserError(NO_ADAPTER)
        self.automatic_optimization = False  # several backward passes make one step
        self.rollout_settings, self.kl, self.loss_settings = rollout, kl, loss
        self.group_size, self.temperature = rollout.group_size, rollout.temperature
        self.micro_batch_tokens, self.sample_every = micro_batch_tokens, sample_every
        self.num_minibatches, self.num_iterations = num_minibatches, num_iterations
        self.num_steps = num_minibatches * num_iterations
        self.samples: list[dict[str, Any]] = []
        self.writers: ServerRollout | None = None
        self.reward = Reward(
            self.labeler,
            reward.mccs_weight,
            reward.format_weight,
            self.margin,
            self.think,
            reward.ce_f1_weight,
            reward.scorers,
        )
        self.monitor = Monitor(rollout.group_size)

    def setup(self, stage: str) -> None:
        """Also check that there is a reference where the KL term needs one."""
        if stage == "fit":
            self.loss_settings.warn_without_effect(self.num_steps)
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and data is not None:
            check_round(data.batch_size, self.num_minibatches)  # before the policy is loaded
        super().setup(stage)
        if stage == "fit":
            check_round(
                min(data.batch_size, len(data.splits["train"]) // self.trainer.world_size), self.num_minibatches
            )
        if self.kl.coef and not self.writer.has_adapter and self.kl.reference != "copy":
            raise UserError(
                "The KL term needs a reference: set model.init_args.lora, kl.reference to 'copy', or kl.coef to 0."
            )
        if stage == "fit" and self.rollout_settings.servers is not None:
            self.writers = connect(self.rollout_settings.servers, self.writer, self.trainer)

    def configure_model(self) -> None:
        """Also keep the reference, sharded as the policy is."""
        super().configure_model()
        if self.trainer.training and self.kl.coef and not self.writer.has_adapter and not self.writer.kept:
            self.writer.keep_reference()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One round: rollout, reward, advantage, reference, loss."""
        self.intact = False
        with self.monitor.phase("vision"):
            prompts = self.writer.embed(batch)
        # Gathered once, for ranks do not sample again equally often.
        with gathered(self.writer), failing_together(self.trainer.world_size, self._keep):
            with self.monitor.phase("rollout"):
                rollout = self.rollout(prompts, batch)
            with self.monitor.phase("reward"):
                rewards = self.rewards(rollout, batch)
            rollout, rewards = self.resample(prompts, batch, rollout, rewards)
        scale = self.loss_settings.advantage_scale
        advantages = group_advantages(rewards.total, self.group_size, scale, present=rewards.scored).to(self.device)
        with self.monitor.phase("reference"):
            ref_logps = self.reference_logps(prompts, rollout, batch)
        with self.monitor.phase("policy"):
            stats = self.update(prompts, rollout, advantages, ref_logps, batch)
        self.log_round(rollout, rewards, advantages, stats, prompts)
        if self.sample_every and self.number % self.sample_every == 0:
            self.samples = first_group(rollout, rewards, batch, self.group_size, self.number)

    def _keep(self) -> None:
        self.intact = True

    @property
    def number(self) -> int:
        """Of this round; unlike the step's it also counts rounds whose step was skipped, and it is resumed."""
        return self.trainer.fit_loop.total_batch_idx

    def rollout(self, prompts: Prompts, batch: Batch, groups: Sequence[int] = (), attempt: int = 0) -> Rollout:
        """`group_size` sampled completions of each study; a function of (seed, rank, round, attempt) and the policy.

        Args:
            prompts: Of the studies that are written for.
            batch: Of the whole round.
            groups: Places of these studies in the batch; all of them by default.
            attempt: 0, or above it where a group is sampled again.
        """
        # All ranks share a seed in Lightning, but must not write the same completions.
        seed = hash((self.rollout_settings.seed, self.global_rank, self.number, attempt)) % 2**63
        if self.writers is not None:
            self.writers.synchronise(self.number, self.trainer)
            seeds = {group: hash((seed, group)) for group in groups or range(len(batch))}
            return self.writers.write(batch, seeds, self.group_size, self.max_new_tokens, self.temperature)
        generator = torch.Generator(self.device).manual_seed(seed)
        return sample(
            self.writer, prompts, self.group_size, self.max_new_tokens, self.temperature, generator, self.decoder
        )

    def rewards(self, rollout: Rollout, batch: Batch, groups: Sequence[int] = ()) -> Rewards:
        """Rewards of the completions of some groups, see `rollout`."""
        studies = groups or range(len(batch))
        target = [batch.target[study] for study in studies for _ in range(self.group_size)]
        study_id = [batch.study_id[study] for study in studies for _ in range(self.group_size)]
        return self.reward(rollout.texts, target, study_id)

    def resample(self, prompts: Prompts, batch: Batch, rollout: Rollout, rewards: Rewards) -> tuple[Rollout, Rewards]:
        """Sample groups of equal rewards again, `rollout.resample_dead` times at most (after Yu et al., DAPO, 2025).

        Groups in which fewer than two completions have a reward are left: where a reward does not apply to a study,
        others do not earn it either.
        """
        for attempt in range(1, self.rollout_settings.resample_dead + 1):
            dead = equal_groups(rewards.total, self.group_size, rewards.scored).nonzero()[:, 0]
            if not len(dead):
                break
            groups = dead.tolist()
            with self.monitor.phase("rollout"):
                again = self.rollout(prompts.rows(dead.to(self.device)), batch, groups, attempt)
            rollout = replace_groups(rollout, again, dead, self.group_size, self.writer.pad_id)
            with self.monitor.phase("reward"):
                new = self.rewards(again, batch, groups)
            rewards = replace_rewards(rewards, new, group_rows(dead, self.group_size))
        return rollout, rewards

    @torch.no_grad()
    def reference_logps(self, prompts: Prompts, rollout: Rollout, batch: Batch) -> Tensor | None:
        """(N, C) of the reference, or None where there is no KL term."""
        if not self.kl.coef:
            return None
        with self.writer.reference():
            if not self.writer.has_adapter:
                prompts = self.writer.embed(batch)  # a copy has embeddings of its own
            return self.round_logps(prompts, rollout)

    @torch.no_grad()
    def round_logps(self, prompts: Prompts, rollout: Rollout) -> Tensor:
        """(N, C) of the policy as it is, in micro-batches."""
        logps = torch.zeros_like(rollout.old_logps)
        groups = range(len(prompts.mask))
        for part, _ in self.passes(groups, prompts, rollout):
            rows, few = self.rows(part), prompts.rows(torch.tensor(part, device=self.device))
            ids, mask = rollout.trimmed(rows)
            logps[rows, : mask.shape[1]] = self.writer.logps(few, ids, mask, self.temperature).logps.to(logps.dtype)
        return logps

    def passes(self, groups: Sequence[int], prompts: Prompts, rollout: Rollout) -> list[tuple[list[int], int]]:
        """Micro-batches of some groups, each with 1, or with 0 where it only keeps ranks that share layers in step."""
        shared = self.writer.shares(rollout.completion_ids.shape[1], several=True)
        num_tokens = self.num_group_tokens(prompts, rollout, 1 if shared else self.group_size)
        parts = micro_batches(groups, num_tokens, self.micro_batch_tokens)
        spare = most_of_ranks(len(parts), self.device) - len(parts) if self.writer.sharded else 0
        return [(part, 1) for part in parts] + [([0], 0)] * spare

    def num_group_tokens(self, prompts: Prompts, rollout: Rollout, copies: int = 1) -> list[int]:
        """Tokens of each group with so many copies of its prompt: one in a packed row."""
        completions = rollout.completion_mask.sum(1).view(-1, self.group_size).sum(1)
        return (copies * prompts.mask.sum(1) + completions).tolist()

    def rows(self, groups: list[int]) -> Tensor:
        """Completions of some groups."""
        return group_rows(torch.tensor(groups, device=self.device), self.group_size)

    def update(
        self, prompts: Prompts, rollout: Rollout, advantages: Tensor, ref_logps: Tensor | None, batch: Batch
    ) -> dict[str, Tensor]:
        """Optimiser steps on the round.

        Returns:
            Sums over completions and steps, see `loss`; of the loss and the gradient's norm means over steps.
        """
        num_steps = self.num_steps
        generator = torch.Generator().manual_seed(hash((self.rollout_settings.seed, self.number)) % 2**63)
        # A server's log-probabilities are not the policy's, whose own are needed once it moves within the round.
        old_logps = self.round_logps(prompts, rollout) if self.writers is not None and num_steps > 1 else None
        totals: dict[str, Tensor] = {}
        for _ in range(self.num_iterations):
            order = generator if num_steps > 1 else None
            for groups in minibatches(len(prompts.mask), self.num_minibatches, order):
                if totals and prompts.embeds.requires_grad:
                    prompts = self.writer.embed(batch)  # the last step changed what they are made by
                step = Step(rollout, advantages, ref_logps, groups, on_policy=num_steps == 1, old_logps=old_logps)
                for name, value in self.step(prompts, step).items():
                    totals[name] = totals.get(name, 0.0) + (value / num_steps if name in BY_STEP else value)
        return totals

    def step(self, prompts: Prompts, step: Step) -> dict[str, Tensor]:
        """One optimiser step on some groups, in micro-batches; returns its loss, norm, and sums over completions."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        world_size = self.trainer.world_size
        step.num_completions = mean_over_ranks(len(step.groups) * self.group_size, world_size, self.device)
        step.num_tokens = mean_over_ranks(self.counted_tokens(step), world_size, self.device)
        # Micro-batches share the prompts' embeddings. Where these are trained, their gradient is collected at leaves
        # and sent on once: a graph can be walked back only once.
        leaves = prompts.detached()
        live = [g for g in step.groups if self.kl.coef or bool(step.advantages.view(-1, self.group_size)[g].any())]
        totals: dict[str, Tensor] = {"loss": torch.zeros((), device=self.device)}
        with local_gradients(self.trainer, self.parameters):
            for part, counts in self.passes(live, prompts, step.rollout):
                loss, stats = self.loss(leaves, step, part)
                self.manual_backward(loss * counts)
                if not counts:
                    continue
                for name, value in {**stats, "loss": loss.detach()}.items():
                    totals[name] = totals.get(name, 0.0) + value
            prompts.send_back(leaves, self.manual_backward)
        if not any_rank(bool(live), world_size, self.device):
            optimizer.zero_grad()  # gradients of 0 would let momentum move the weights, where none leave them
        norm = clip_gradients(self.parameters(), self.optimizer_settings.max_grad_norm)
        if self.patience.takes(norm, self.number):
            optimizer.step()
            # An autocast whose cache is on, as Lightning's is not, would go on with casts of the weights before.
            torch.clear_autocast_cache()
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        scheduler.step()
        return {**totals, "grad_norm": norm}

    def loss(self, prompts: Prompts, step: Step, groups: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Share of some groups in the step's loss, and sums over their completions.

        The sums are of means over tokens, `computed` counts the completions and `counted` those that send a gradient.
        """
        rows = self.rows(groups)
        ids, mask = step.rollout.trimmed(rows)
        tokens = self.writer.logps(prompts.rows(torch.tensor(groups, device=mask.device)), ids, mask, self.temperature)
        old_logps = sampled = step.rollout.old_logps[rows, : mask.shape[1]]
        if step.on_policy:
            old_logps = tokens.logps.detach()
        elif step.old_logps is not None:
            old_logps = step.old_logps[rows, : mask.shape[1]]
        weights = beyond = None
        if servers := self.rollout_settings.servers:
            weights, beyond = correction_weights(old_logps, sampled, mask, servers.correction, servers.ratio_limit)
        counted = step.rollout.counted(self.loss_settings.mask_truncated)[rows]
        loss, stats = grpo_loss(
            tokens.logps,
            old_logps,
            None if step.ref_logps is None else step.ref_logps[rows, : mask.shape[1]],
            step.advantages[rows],
            mask & counted[:, None],
            step.num_completions,
            self.loss_settings.clip_low,
            self.loss_settings.clip_high,
            self.kl.coef,
            loss_type=self.loss_settings.type,
            num_tokens=step.num_tokens,
            max_tokens=self.max_new_tokens,
            dual_clip=self.loss_settings.dual_clip,
            kl_estimator=self.kl.estimator,
            kl_ratio_correction=self.kl.ratio_correction,
            weights=weights,
        )
        length = mask.sum(1)
        if beyond is not None:
            stats["corrected"] = (beyond.sum(1) / length).sum()
        # What sampling and training disagree on; above .05 one of them computes another distribution.
        stats["logp_gap"] = ((tokens.logps.detach() - sampled).abs().sum(1) / length).sum()
        stats["entropy"] = (tokens.entropy.sum(1) / length).sum()
        stats["computed"], stats["counted"] = torch.full_like(loss, len(rows)).detach(), counted.sum()
        return loss, stats

    def counted_tokens(self, step: Step) -> float:
        """Tokens that an optimiser step is normalised by: its own, or for some losses its share of the round's."""
        tokens = step.rollout.completion_mask.sum(1) * step.rollout.counted(self.loss_settings.mask_truncated)
        if self.loss_settings.type in ("dapo", "cispo"):
            return float(tokens.sum()) / self.num_minibatches
        return float(tokens[self.rows(step.groups)].sum())

    def log_round(
        self, rollout: Rollout, rewards: Rewards, advantages: Tensor, sums: dict[str, Tensor], prompts: Prompts
    ) -> None:
        """What tells a healthy round from a collapse, of all ranks."""
        num_tokens = sum(self.num_group_tokens(prompts, rollout))
        teaches = advantages.bool() & rollout.counted(self.loss_settings.mask_truncated)
        own = Outcome.of(rollout, rewards, self.group_size, num_tokens, teaches, sums)
        whole = Outcome.joined(gather(own, self.trainer.world_size))
        values = self.monitor.round(whole)
        if values.get("train/logp_gap", 0.0) > 0.05 and self.num_steps == 1:
            warnings.warn(
                f"Sampling and training disagree by {values['train/logp_gap']:.3f} nats a token: check the precision.",
                stacklevel=2,
            )
        for name, value in values.items():
            self.log(name, value, batch_size=len(prompts.mask), prog_bar=name in ("reward/total", "reward/mccs"))
        self.patience.watch(not whole.teaches and not self.kl.coef)
