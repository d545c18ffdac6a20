"""Group relative policy optimisation on a clinical reward (Shao et al., 2024; MRG-R1, 2025).

Choices: one inner epoch, so the old log-probabilities are the rollout's own; the reference is the policy with its adapter
off; the loss is normalised by the round, so its value does not depend on the micro-batch split. Left out: value networks,
reward normalisation across studies, several inner epochs.
"""

from __future__ import annotations

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
        self.automatic_optimization = False  # several backward passes make one step
        self.group_size, self.micro_batch_size, self.temperature = group_size, micro_batch_size, temperature
        self.kl_coef, self.clip_low, self.clip_high = kl_coef, clip_low, clip_high
        self.advantage_scale, self.rollout_seed = advantage_scale, seed
        self.reward = Reward(self.labeler, mccs_weight, format_weight, self.margin, self.think)

    def setup(self, stage: str) -> None:
        """Also check that there is a reference where the KL term needs one."""
        super().setup(stage)
        if self.kl_coef and not self.writer.has_adapter:
            raise ValueError(
                "The KL term needs a reference: set model.init_args.lora, or model.init_args.kl_coef to 0."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One round: rollout, reward, advantage, reference, loss, one optimiser step."""
        prompts = self.writer.embed(batch)
        rollout = sample(
            self.writer, _detached(prompts), self.group_size, self.max_new_tokens, self.temperature, self._generator()
        )
        target = [text for text in batch.target for _ in range(self.group_size)]
        study_id = [name for name in batch.study_id for _ in range(self.group_size)]
        rewards, parts = self.reward(rollout.texts, target, study_id)
        advantages = group_advantages(rewards, self.group_size, self.advantage_scale).to(self.device)
        stats = self._step(prompts, rollout, advantages)
        self._log_round(rollout, rewards, parts, stats)

    def _generator(self) -> torch.Generator:
        """All ranks share a seed in Lightning; rollouts must differ by rank and by round."""
        seed = hash((self.rollout_seed, self.global_rank, self.global_step))
        return torch.Generator(self.device).manual_seed(seed % 2**63)

    def _step(self, prompts: Prompts, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor]:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        num_completions = len(rollout.texts)
        totals: dict[str, Tensor] = {}
        for start in range(0, num_completions, self.micro_batch_size):
            rows = slice(start, min(start + self.micro_batch_size, num_completions))
            loss, stats = self._loss(prompts, rollout, advantages, rows)
            self.manual_backward(loss)
            for name, value in {"loss": loss.detach(), **stats}.items():
                share = value if name in ("loss", "logp_gap") else value / num_completions
                totals[name] = totals.get(name, torch.zeros_like(share)) + share
        trained = [p for p in self.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
        if not bool(norm.isfinite()):
            raise RuntimeError(
                f"The gradient's norm is {float(norm)} in round {self.global_step}: lower learning_rate."
            )
        optimizer.step()
        schedulers = self.lr_schedulers()
        if schedulers is not None:
            schedulers.step()
        return {**totals, "grad_norm": norm}

    def _loss(
        self, prompts: Prompts, rollout: Rollout, advantages: Tensor, rows: slice
    ) -> tuple[Tensor, dict[str, Tensor]]:
        studies = torch.arange(rows.start, rows.stop, device=self.device) // self.group_size
        repeated = Prompts(prompts.embeds[studies], prompts.mask[studies], prompts.positions[:, studies])
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
            logps, old_logps, ref_logps, advantages[rows], mask, len(rollout.texts),
            self.clip_low, self.clip_high, self.kl_coef,
        )  # fmt: skip
        stats["logp_gap"] = (logps.detach() - old_logps).abs().max() * len(ids) / len(rollout.texts)
        return loss, stats

    def _log_round(self, rollout: Rollout, rewards: Tensor, parts: dict[str, Tensor], stats: dict[str, Tensor]) -> None:
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


def _detached(prompts: Prompts) -> Prompts:
    return Prompts(prompts.embeds.detach(), prompts.mask, prompts.positions)
