"""What a module that learns from rewards has: the reward, its running counts in checkpoints, and the advantages."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from mrg.metrics import CEF1
from mrg.modules.base import ReportModule
from mrg.modules.ranks import gather
from mrg.modules.rl.advantage import Scale, group_advantages
from mrg.modules.rl.corpus_f1 import CorpusF1Reward
from mrg.modules.rl.reward import Reward, Rewards
from mrg.modules.settings import RewardSettings


class RewardedModule(ReportModule):
    """A `ReportModule` with a reward; GRPO's own file is about the rounds."""

    reward: Reward
    group_size: int
    corpus: dict[str, CorpusF1Reward]
    advantage_scale: Scale

    def set_reward(self, reward: RewardSettings, scale: Scale | Literal["auto"]) -> None:
        """Build the reward, and choose what divides the advantages.

        Args:
            reward: Weights of the parts of the reward.
            scale: See `LossSettings`.
        """
        self.reward = Reward(self.labeler, margin=self.margin, think=self.think, **vars(reward))
        self.corpus = self.reward.corpus
        self.advantage_scale = "batch" if self.corpus else "group"
        if scale != "auto":
            self.advantage_scale = scale

    def advantages(self, rewards: Rewards) -> Tensor:
        """Advantages (N,) of the completions of this rank."""
        deviation = None
        if self.advantage_scale == "batch":
            own = rewards.total if rewards.scored is None else rewards.total[rewards.scored]
            values = torch.cat(gather(own, self.trainer.world_size))
            deviation = float(values.std()) if len(values) > 1 else None
        advantages = group_advantages(
            rewards.total, self.group_size, self.advantage_scale, present=rewards.scored, deviation=deviation
        )
        return advantages.to(self.device)

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
