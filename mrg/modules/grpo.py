"""Group relative policy optimization on a clinical reward (Shao et al., DeepSeekMath, 2024; MRG-R1, 2025).

A round: the policy samples a group of completions for each study, every completion is rewarded, and its gradient is
weighted by its advantage over its group.

Choices:

- What the completions of a study share, its images and its prompt, is computed once in the rollout, in the reference
  pass and in the loss.
- A round of one optimizer step takes the policy's own log-probabilities as the old ones, so every ratio is exactly 1.
  A round of several steps takes the sampler's, recomputed by the policy if another engine sampled.
- The reference model is the policy with its adapter off, or a copy of all trained weights at the start.
- The loss is normalized by the whole step on all ranks, so it does not depend on how the step is split.
- Without a KL term, groups of equal rewards have no gradient and are not computed.
- Servers may sample the next round while this one trains (`rollout.overlap`); its completions are one step old.
- A reward that fails stops the run on all ranks, before anything has changed.

Left out: value networks, and a KL penalty within the reward.

Sizes: B studies, G completions per study, N = B * G completions of at most C tokens, row n belongs to study n // G;
n completions of at most c tokens in a micro-batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.datamodules.selection import Measured, Selection
from mrg.log import log
from mrg.modules.checks import check_counts
from mrg.modules.optimizer import clip_gradients, local_gradients
from mrg.modules.policy.ranks import failing_together, gather, gathered, mean_over_ranks
from mrg.modules.prefix.flex import Attention, flex_state
from mrg.modules.prefix.packing import Prompts
from mrg.modules.rl.batch import MicroBatch, Step, check_round, minibatches
from mrg.modules.rl.correction import token_weights
from mrg.modules.rl.entropy import EntropyBonus, entropy_term
from mrg.modules.rl.loss import grpo_loss
from mrg.modules.rl.monitor import BY_STEP, Monitor, Outcome, first_group
from mrg.modules.rl.reward import Rewards
from mrg.modules.rl.settings import LossSettings, RewardSettings
from mrg.modules.rollout.ahead import Ahead
from mrg.modules.rollout.engines import check_engine, check_place, connect_engine
from mrg.modules.rollout.sampling import Rollout
from mrg.modules.rollout.vllm import VLLMClient
from mrg.modules.round import RoundModule
from mrg.modules.selection import measure
from mrg.modules.settings import KLSettings, RolloutSettings


class GRPOModule(RoundModule):
    """GRPO: grouped rollouts, a reward, group advantages, and a clipped loss.

    Args:
        rollout: How completions are sampled.
        reward: Weights of the parts of the reward.
        kl: KL term of the loss and its reference model.
        loss: Policy loss and advantages.
        num_minibatches: Optimizer steps per pass over the studies of a round.
        num_iterations: Passes over the studies of a round.
        micro_batch_tokens: Tokens of one forward and backward pass: prompts, each once, and completions. A group is
            never cut. Lower it if memory runs out.
        attention: How completions attend to their prompt on a CUDA GPU: by FlexAttention, or to copies of its keys.
        sample_every: Rounds between two groups that are written to samples.jsonl; 0 writes none.
        **kwargs: Arguments of `ReportModule`.

    Raises:
        UserError: If settings are out of range or contradict each other.
    """

    def __init__(
        self,
        rollout: RolloutSettings = RolloutSettings(),
        reward: RewardSettings = RewardSettings(),
        kl: KLSettings = KLSettings(),
        loss: LossSettings = LossSettings(),
        num_minibatches: int = 1,
        num_iterations: int = 1,
        micro_batch_tokens: int = 16_384,
        attention: Attention = "auto",
        sample_every: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_counts(num_minibatches=num_minibatches, num_iterations=num_iterations)
        check_counts(micro_batch_tokens=micro_batch_tokens)
        check_counts(0, sample_every=sample_every)
        kl.check_fixed(self.train_vision, self.lora, self.language_model)
        check_engine(rollout, self.lora, self.load_in_4bit, self.train_vision, self.language_model)
        self.automatic_optimization = False  # several backward passes make one step
        self.rollout_settings, self.kl, self.loss_settings = rollout, kl, loss
        self.group_size, self.temperature, self.loss_options = rollout.group_size, rollout.temperature, loss.options()
        self.num_minibatches, self.num_iterations = num_minibatches, num_iterations
        self.num_steps = num_minibatches * num_iterations
        self.micro_batch_tokens, self.sample_every, self.attention = micro_batch_tokens, sample_every, attention
        sampler = rollout.engine
        self.correction = None if sampler is None else (sampler.correction, sampler.ratio_limit)
        self.set_reward(reward, loss)
        self.entropy_bonus = EntropyBonus(loss.entropy)
        self.adds_references, self.reference_share = rollout.add_reference, 0.0
        self.monitor = Monitor(rollout.group_size)
        self.samples: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        """Load the policy, and check before that a round has a study for each step and the KL term a reference."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit":
            self.loss_settings.warn_without_effect(self.num_steps, self.rollout_settings.engine is not None)
            check_place(self.rollout_settings, self.trainer)
            flex = flex_state(self.attention, self.trainer.strategy.root_device)
            if data is not None:
                check_round(data.batch_size, self.num_minibatches)
        super().setup(stage)
        self.policy.entropy_gradient = self.loss_settings.entropy.has_bonus
        self.kl.check_reference(self.policy.has_adapter)
        if stage == "fit":
            self.policy.flex = flex
            per_rank = len(data.splits["train"]) // self.trainer.world_size
            check_round(min(data.batch_size, per_rank), self.num_minibatches)
            images = self.max_views * (2 if self.use_prior else 1)
            self.engine = connect_engine(self.rollout_settings, self.policy, self.trainer, self.source, images)
            if self.rollout_settings.overlap and isinstance(self.engine, VLLMClient):
                self.ahead, data.knows_next = Ahead(self.engine), True

    def configure_model(self) -> None:
        """Shard the policy if the strategy does, and copy its weights as the reference if there is no adapter."""
        super().configure_model()
        if self.trainer.training and self.kl.coef and not self.policy.has_adapter and not self.policy.reference_weights:
            self.policy.keep_reference()

    def measure(self, select: Selection, epoch: int) -> Measured:
        """Measure how the rewards of all training studies vary; the data module calls this before an epoch."""
        return measure(self, select, epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One round: rollout, reward, advantages, reference, loss."""
        self.intact = False
        with self.monitor.phase("vision"):
            prompts = self.policy.embed(batch)
        # Weights are gathered once: ranks do not resample equally often.
        with gathered(self.policy), failing_together(self.trainer.world_size, self.keep_intact):
            with self.monitor.phase("rollout"):
                rollout = self.rollout(prompts, batch)
            with self.monitor.phase("reward"):
                rewards = self.rewards(rollout, batch)
            own = self.resample(prompts, batch, rollout, rewards)
        self.sample_ahead(batch)
        rollout, rewards = self.add_references(prompts, batch, *own)
        advantages = self.advantages(rewards, batch.importance)
        with self.monitor.phase("reference"):
            ref_logps = self.reference_logps(prompts, rollout, batch)
        with self.monitor.phase("policy"):
            sums = self.update(prompts, rollout, self.credit(rollout, rewards, advantages), ref_logps, batch)
        self.log_round(own, rollout, rewards, advantages, sums, prompts)
        self.update_corpus(own[1], batch.importance)
        if self.sample_every and self.round_index % self.sample_every == 0:
            self.samples = first_group(*own, batch, self.group_size, self.round_index)

    def update(
        self, prompts: Prompts, rollout: Rollout, advantages: Tensor, ref_logps: Tensor | None, batch: Batch
    ) -> dict[str, Tensor]:
        """Optimizer steps of a round.

        Returns:
            Sums over completions and steps, see `loss`; for the loss and the gradient norm, means over steps.
        """
        old_logps = None if self.num_steps == 1 else rollout.old_logps  # (N, C)
        if self.num_steps > 1 and self.engine is not None:
            old_logps = self.round_values(prompts, rollout).logps  # an engine's are not quite the policy's
        uncertain = self.uncertain_tokens(prompts, rollout)
        generator = torch.Generator().manual_seed(hash((self.rollout_settings.seed, self.round_index)) % 2**63)
        totals: dict[str, Tensor] = {}
        for _ in range(self.num_iterations):
            order = generator if self.num_steps > 1 else None
            for groups in minibatches(len(prompts.mask), self.num_minibatches, order):
                if totals and prompts.embeds.requires_grad:
                    prompts = self.policy.embed(batch)  # the last step changed what they are made by
                sums = self.step(prompts, Step(rollout, advantages, ref_logps, groups, old_logps, uncertain))
                for name, value in sums.items():
                    totals[name] = totals.get(name, 0.0) + (value / self.num_steps if name in BY_STEP else value)
        return totals

    def step(self, prompts: Prompts, step: Step) -> dict[str, Tensor]:
        """One optimizer step in micro-batches; returns its loss, its gradient norm, and the sums of `loss`."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        world_size = self.trainer.world_size
        step.num_completions = mean_over_ranks(len(step.groups) * self.group_size, world_size, self.device)
        options = self.group_size, self.num_minibatches, self.loss_settings.type, self.loss_settings.mask_truncated
        step.num_tokens = mean_over_ranks(step.num_loss_tokens(*options), world_size, self.device)
        num_uncertain = step.num_uncertain_tokens(self.group_size, self.loss_settings.mask_truncated)
        step.num_entropy_tokens = mean_over_ranks(num_uncertain, world_size, self.device)
        # Micro-batches share the prompts' embeddings. If these are trained, their gradient is collected at leaves and
        # sent on once: backward passes through a graph only once.
        leaves = prompts.detached()
        counted = step.rollout.counted(self.loss_settings.mask_truncated)  # (N,)
        teaches = step.advantages.reshape(len(counted), -1).any(1) & counted
        teaches = teaches.view(step.num_groups(self.group_size), -1).any(1)
        every = bool(self.kl.coef) or self.policy.entropy_gradient
        live = [group for group in step.groups if every or bool(teaches[group])]
        totals: dict[str, Tensor] = {"loss": torch.zeros((), device=self.device)}
        with local_gradients(self.trainer, self.parameters):
            for part in self.micro_batches(live, prompts, step.rollout):
                loss, sums = self.loss(leaves, step, part)
                self.manual_backward(loss * part.weight)
                if part.weight:
                    for name, value in {**sums, "loss": loss.detach()}.items():
                        totals[name] = totals.get(name, 0.0) + value
            prompts.send_back(leaves, self.manual_backward)
        if self.policy.entropy_gradient and step.num_entropy_tokens:
            mean = mean_over_ranks(float(totals.pop("entropy_sum", 0.0)), world_size, self.device)
            self.entropy_bonus.update(mean / step.num_entropy_tokens)
        norm = clip_gradients(self.parameters(), self.optimizer_settings.max_grad_norm)
        if not bool(norm):
            optimizer.zero_grad()  # with gradients of 0, momentum would still move the weights
        if self.patience.takes(norm, self.round_index, mean_over_ranks(float(totals["loss"]), world_size, self.device)):
            optimizer.step()
            torch.clear_autocast_cache()  # a cache, if it is on, holds casts of the weights before the step
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        scheduler.step()
        return {**totals, "grad_norm": norm}

    def loss(self, prompts: Prompts, step: Step, part: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Share of a micro-batch in the loss of a step, and sums over its completions.

        The sums are of means over tokens; `computed` counts the completions and `counted` those with a gradient.
        """
        tokens = self.policy.logps(prompts.rows(part.groups), part.completion_ids, part.mask, self.temperature)
        sampled = part.take(step.rollout.old_logps)  # (n, c)
        old_logps = tokens.logps.detach() if step.old_logps is None else part.take(step.old_logps)  # (n, c)
        advantages = part.take(step.advantages)  # (n,) or (n, c)
        limit = self.loss_settings.off_policy_limit
        weights: Tensor | None = None
        sums: dict[str, Tensor] = {}
        if self.correction is not None or limit is not None:
            values = tokens.logps, old_logps, sampled, advantages, part.mask
            weights, sums = token_weights(self.correction, limit, *values)
        counted = part.take(step.rollout.counted(self.loss_settings.mask_truncated))  # (n,)
        mask = part.mask & counted[:, None]
        uncertain = mask if step.uncertain is None else mask & part.take(step.uncertain)
        if step.uncertain is not None:
            weights = uncertain.to(sampled.dtype) * (1.0 if weights is None else weights)
        loss, more = grpo_loss(
            tokens.logps,
            old_logps,
            None if step.ref_logps is None else part.take(step.ref_logps),
            advantages,
            mask,
            step.num_completions,
            num_tokens=step.num_tokens,
            max_tokens=self.max_new_tokens,
            kl_coef=self.kl.coef,
            kl_estimator=self.kl.estimator,
            kl_ratio_correction=self.kl.ratio_correction,
            weights=weights,
            **self.loss_options,
        )
        if self.policy.entropy_gradient:
            sums["entropy_sum"] = tokens.entropy.detach().where(uncertain, 0.0).sum()
            loss = loss + entropy_term(tokens.entropy, uncertain, self.entropy_bonus.applied, step.num_entropy_tokens)
        length = part.mask.sum(1)  # (n,)
        # The gap between sampling and training; above .05, one of them computes another distribution.
        sums["logp_gap"] = ((tokens.logps.detach() - sampled).abs().sum(1) / length).sum()
        sums["entropy"] = (tokens.entropy.detach().sum(1) / length).sum()
        sums["computed"], sums["counted"] = torch.full_like(loss, len(part.rows)).detach(), counted.sum()
        return loss, sums | more

    def log_round(
        self, own: tuple[Rollout, Rewards], rollout: Rollout, rewards: Rewards, advantages: Tensor,
        sums: dict[str, Tensor], prompts: Prompts,
    ) -> None:  # fmt: skip
        """Log metrics that distinguish a healthy round from a collapse, over all ranks.

        Args:
            own: What the policy has written, and its rewards.
            rollout: What it has learned from, which may have reference reports in place of some completions.
            rewards: Rewards of these.
            advantages: (N,) advantages of these.
            sums: Sums of the optimizer steps.
            prompts: Prompts of the studies.
        """
        num_tokens = sum(self.num_group_tokens(prompts, rollout))
        teaches = advantages.bool() & rollout.counted(self.loss_settings.mask_truncated)  # (N,)
        learned = rewards if self.adds_references else None
        part = Outcome.of(*own, self.group_size, num_tokens, teaches, sums, advantages, learned)
        whole = Outcome.joined(gather(part, self.trainer.world_size))
        values = self.monitor.round(whole, self.signal(whole.trained_on)) | self.part_statistics(whole.trained_on)
        values |= self.settings_values()
        self.watch.rewards.append(values.get("reward/total", 0.0))
        for name, scorer in self.corpus.items():
            values[f"train/{name}"] = float(scorer.f1.mean())  # the one by which this round was rewarded
        if (gap := values.get("train/logp_gap", 0.0)) > 0.05 and self.num_steps == 1 and not self.ahead:
            log.warning("Sampling and training disagree by %.3f nats per token: check the precision.", gap)
        for name, value in values.items():
            self.log(name, value, batch_size=len(prompts.mask), prog_bar=name in ("reward/total", "reward/mccs"))
        self.patience.watch(not whole.teaches and not self.kl.coef)
