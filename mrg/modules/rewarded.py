"""The reward of a module that learns from one: built from settings, and its running counts in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.log import log
from mrg.metrics import CEF1
from mrg.modules.base import ReportModule
from mrg.modules.policy.ranks import gather
from mrg.modules.rl.advantage import Scale, group_advantages
from mrg.modules.rl.corpus_f1 import CorpusF1Reward
from mrg.modules.rl.decoupled import decoupled_terms, part_statistics, scaled
from mrg.modules.rl.reward import Reward, Rewards
from mrg.modules.rollout.sampling import Rollout
from mrg.modules.settings import LossSettings, RewardSettings


class RewardedModule(ReportModule):
    """A `ReportModule` with a reward."""

    reward: Reward
    group_size: int
    corpus: dict[str, CorpusF1Reward]
    advantage_scale: Scale
    decoupled: bool
    part_weights: dict[str, float]

    def set_reward(self, reward: RewardSettings, loss: LossSettings) -> None:
        """Build the reward, and choose how advantages are made from it.

        Args:
            reward: Weights of the parts of the reward.
            loss: Settings with the scale of the advantages and the order of normalizing and summing.
        """
        self.reward = Reward(self.labeler, margin=self.margin, think=self.think, **vars(reward))
        self.corpus = self.reward.corpus
        self.advantage_scale = "batch" if self.corpus else "group"
        if loss.advantage_scale != "auto":
            self.advantage_scale = loss.advantage_scale
        self.decoupled = loss.aggregation == "normalize_then_sum"
        self.part_weights = self.reward.weights
        if self.decoupled and self.corpus:
            log.warning(
                "model.init_args.loss.aggregation normalize_then_sum divides the corpus F1 by the deviation of each "
                "group, so that a hallucinated finding costs as much as a correct one gains: use sum_then_normalize."
            )

    def rewards(self, rollout: Rollout, batch: Batch, groups: Sequence[int] = ()) -> Rewards:
        """Rewards of the completions of some groups of the batch, of all of them by default."""
        studies = [study for study in groups or range(len(batch)) for _ in range(self.group_size)]  # N
        target, study_id = [batch.target[i] for i in studies], [batch.study_id[i] for i in studies]
        return self.reward(rollout.texts, target, study_id)

    def signal(self, rewards: Rewards) -> Tensor:
        """(N,) what completions of a group are compared by: the reward, or the sum of its normalized parts."""
        if not self.decoupled:
            return rewards.total
        terms = decoupled_terms(rewards.parts, self.part_weights, self.group_size, rewards.present)
        return torch.stack(list(terms.values())).sum(0)

    def advantages(self, rewards: Rewards) -> Tensor:
        """Advantages (N,) of the completions of this rank."""
        signal, deviation = self.signal(rewards), None
        if self.decoupled or self.advantage_scale == "batch":
            own = signal if rewards.scored is None else signal[rewards.scored]
            values = torch.cat(gather(own, self.trainer.world_size))
            deviation = float(values.std()) if len(values) > 1 else None
        if self.decoupled:
            return scaled(signal, deviation or 0.0, rewards.scored).to(self.device)
        options = self.group_size, self.advantage_scale
        return group_advantages(signal, *options, present=rewards.scored, deviation=deviation).to(self.device)

    def part_statistics(self, rewards: Rewards) -> dict[str, float]:
        """Log keys of what each part adds to the advantages of all ranks; none if the sum is normalized."""
        if not self.decoupled:
            return {}
        terms = decoupled_terms(rewards.parts, self.part_weights, self.group_size, rewards.present)
        return part_statistics(terms, rewards.parts, self.group_size, rewards.present)

    def on_validation_epoch_end(self) -> None:
        """Also pass what the validation found to the corpus-F1 rewards."""
        super().on_validation_epoch_end()
        if self.corpus and self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            metric = self.scores["ce_f1"]
            assert isinstance(metric, CEF1)
            table = self.trainer.strategy.reduce(metric.confusion.clone(), reduce_op="sum")
            for scorer in self.corpus.values():
                scorer.validated(table)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the running counts of the corpus-F1 rewards."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["corpus_f1"] = {name: scorer.state_dict() for name, scorer in self.corpus.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also resume the running counts of the corpus-F1 rewards."""
        super().on_load_checkpoint(checkpoint)
        for name, state in checkpoint.get("corpus_f1", {}).items():
            if name in self.corpus:
                self.corpus[name].load_state_dict(state)
