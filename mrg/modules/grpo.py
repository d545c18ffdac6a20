"""Group relative policy optimisation on a clinical reward (Shao et al., 2024; MRG-R1, 2025).

Choices: one inner epoch, so the old log-probabilities are the rollout's own; the reference is the policy with its
adapter off; the loss is normalised by the round, so its value does not depend on the micro-batch split; each completion
is computed behind a prompt of its own. Left out: value networks, several inner epochs, the prompt shared in the loss.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.modules.advantage import dead_groups, group_advantages
from mrg.modules.base import ReportModule
from mrg.modules.loss import grpo_loss
from mrg.modules.policy import Prompts
from mrg.modules.reward import Reward
from mrg.modules.rollout import Rollout, sample


class GRPOModule(ReportModule):
    """Grouped rollouts, a reward, group advantages, a clipped loss.

    Args:
        group_size: Completions per study.
        micro_batch_size: Completions per forward and backward pass.
        temperature: Of sampling, above 0.
        kl_coef: Weight of the KL to the reference; 0 needs no reference.
        clip_low: See `grpo_loss`.
        clip_high: See `grpo_loss`.
        advantage_scale: See `group_advantages`.
        mccs_weight: See `Reward`.
        format_weight: See `Reward`.
        seed: Rollouts are a function of (seed, rank, round).
        **kwargs: See `ReportModule`.
    """

    def __init__(
        self,
        group_size: int = 8,
        micro_batch_size: int = 64,
        temperature: float = 1.0,
        kl_coef: float = 0.04,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        advantage_scale: str = "group",
        mccs_weight: float = 0.75,
        format_weight: float = 0.25,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if group_size < 2:
            raise ValueError(f"Expected model.init_args.group_size to be at least 2, but got {group_size}.")
        if temperature <= 0:
            raise ValueError(f"Expected model.init_args.temperature to be above 0, but got {temperature}.")
        if micro_batch_size < 1:
            raise ValueError(f"Expected model.init_args.micro_batch_size to be at least 1, but got {micro_batch_size}.")
        if advantage_scale not in ("group", "batch", "none"):
            raise ValueError(
                "Expected model.init_args.advantage_scale to be 'group', 'batch' or 'none', "
                f"but got {advantage_scale!r}."
            )
        if kl_coef and self.train_vision:
            raise ValueError(
                "The reference shares the vision tower: set model.init_args.train_vision to false, or kl_coef to 0."
            )
        self.automatic_optimization = False  # several backward passes make one step
        self.group_size, self.micro_batch_size, self.temperature = group_size, micro_batch_size, temperature
        self.kl_coef, self.clip_low, self.clip_high = kl_coef, clip_low, clip_high
        self.advantage_scale, self.rollout_seed = advantage_scale, seed
        self.reward = Reward(self.labeler, mccs_weight, format_weight, self.margin, self.think)

    def setup(self, stage: str) -> None:
        """Also check that there is a reference where the KL term needs one."""
        if stage == "fit" and self.trainer.precision == "16-mixed":
            raise ValueError(
                "Gradients are clipped before they are unscaled: use trainer.precision bf16-mixed or 32-true."
            )
        super().setup(stage)
        if self.kl_coef and not self.writer.has_adapter:
            raise ValueError(
                "The KL term needs a reference: set model.init_args.lora, or model.init_args.kl_coef to 0."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One round: rollout, reward, advantage, then reference and loss in one optimiser step."""
        prompts = self.writer.embed(batch)
        rollout = self.rollout(prompts)
        rewards, parts = self.rewards(rollout, batch)
        advantages = group_advantages(rewards, self.group_size, self.advantage_scale).to(self.device)
        stats = self.update(prompts, rollout, advantages)
        self.log_round(rollout, rewards, parts, stats)

    def rollout(self, prompts: Prompts) -> Rollout:
        """N = B * group_size sampled completions; a function of (seed, rank, round) and the policy alone."""
        # All ranks share a seed in Lightning, but must not write the same completions.
        seed = hash((self.rollout_seed, self.global_rank, self.global_step)) % 2**63
        generator = torch.Generator(self.device).manual_seed(seed)
        return sample(self.writer, prompts, self.group_size, self.max_new_tokens, self.temperature, generator)

    def rewards(self, rollout: Rollout, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(N,) rewards and their parts."""
        target = [text for text in batch.target for _ in range(self.group_size)]
        study_id = [name for name in batch.study_id for _ in range(self.group_size)]
        return self.reward(rollout.texts, target, study_id)

    def update(self, prompts: Prompts, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor]:
        """One optimiser step on the whole round, in micro-batches; returns means over completions."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        # Micro-batches share the prompts' embeddings. Where these are trained, their gradient is collected at a leaf
        # and sent on once: a graph can be walked back only once.
        leaf = prompts.embeds.detach().requires_grad_(prompts.embeds.requires_grad)
        leaves = dataclasses.replace(prompts, embeds=leaf)
        num_completions = len(rollout.texts)
        totals: dict[str, Tensor] = {}
        for start in range(0, num_completions, self.micro_batch_size):
            rows = slice(start, min(start + self.micro_batch_size, num_completions))
            loss, stats = self.loss(leaves, rollout, advantages, rows)
            self.manual_backward(loss)
            stats = {name: value / num_completions for name, value in stats.items()} | {"loss": loss.detach()}
            totals = {name: value + totals.get(name, 0.0) for name, value in stats.items()}
        if leaf.grad is not None:
            self.manual_backward((prompts.embeds * leaf.grad).sum())
        norm = torch.nn.utils.clip_grad_norm_([p for p in self.parameters() if p.requires_grad], self.max_grad_norm)
        if not bool(norm.isfinite()):
            raise RuntimeError(
                f"The gradient's norm is {float(norm)} in round {self.global_step}: "
                "lower model.init_args.learning_rate."
            )
        optimizer.step()
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        scheduler.step()
        return {**totals, "grad_norm": norm}

    def loss(
        self, prompts: Prompts, rollout: Rollout, advantages: Tensor, rows: slice
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Share of some rows in the round's loss, and sums over these rows."""
        studies = torch.arange(rows.start, rows.stop, device=self.device) // self.group_size
        repeated = prompts.rows(studies)
        mask = rollout.completion_mask[rows]
        longest = int(mask.sum(1).max())
        ids, mask = rollout.completion_ids[rows, :longest], mask[:, :longest]
        old_logps = rollout.old_logps[rows, :longest]
        ref_logps = None
        if self.kl_coef:
            with torch.no_grad(), self.writer.reference():
                ref_logps = self.writer.logps(repeated, ids, mask, self.temperature)
        logps = self.writer.logps(repeated, ids, mask, self.temperature)
        loss, stats = grpo_loss(
            logps,
            old_logps,
            ref_logps,
            advantages[rows],
            mask,
            len(rollout.texts),
            self.clip_low,
            self.clip_high,
            self.kl_coef,
        )
        # What sampling and training disagree on; above .05 one of them computes another distribution.
        gap = (logps.detach() - old_logps).abs().sum(1) / mask.sum(1)
        return loss, {**stats, "logp_gap": gap.sum()}

    def log_round(self, rollout: Rollout, rewards: Tensor, parts: dict[str, Tensor], stats: dict[str, Tensor]) -> None:
        """What tells a healthy round from a collapse."""
        if float(stats["logp_gap"]) > 0.05:
            warnings.warn(
                f"Sampling and training disagree by {float(stats['logp_gap']):.3f} nats a token: check the precision.",
                stacklevel=2,
            )
        groups = [rollout.texts[i : i + self.group_size] for i in range(0, len(rollout.texts), self.group_size)]
        values: dict[str, Any] = {
            "reward/total": rewards.mean(),
            **{f"reward/{name}": value.mean() for name, value in parts.items()},
            "train/dead_groups": dead_groups(rewards, self.group_size).double().mean(),
            "train/distinct": sum(len(set(group)) for group in groups) / len(rollout.texts),
            "train/length": rollout.completion_mask.sum(1).double().mean(),
            "train/truncated": rollout.truncated.double().mean(),
            **{f"train/{name}": value for name, value in stats.items()},
        }
        for name, value in values.items():
            self.log(name, float(value), batch_size=len(groups), prog_bar=name in ("reward/total", "reward/mccs"))
