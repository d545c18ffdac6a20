"""The reward of a module that learns from one: built from settings, and its running counts in checkpoints."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch.trainer.states import TrainerFn

from mrg.metrics import CEF1
from mrg.modules.base import ReportModule
from mrg.modules.rl.advantage import Scale
from mrg.modules.rl.corpus_f1 import CorpusF1Reward
from mrg.modules.rl.reward import Reward
from mrg.modules.settings import RewardSettings


class RewardedModule(ReportModule):
    """A `ReportModule` with a reward."""

    reward: Reward
    group_size: int
    corpus: dict[str, CorpusF1Reward]
    advantage_scale: Scale

    def set_reward(self, reward: RewardSettings, scale: Scale | Literal["auto"]) -> None:
        """Build the reward, and choose what divides the advantages.

        Args:
            reward: Weights of the parts of the reward.
            scale: What divides the advantages: the standard deviation of `"group"` or `"batch"`, or `"none"`.
        """
        self.reward = Reward(self.labeler, margin=self.margin, think=self.think, **vars(reward))
        self.corpus = self.reward.corpus
        self.advantage_scale = "batch" if self.corpus else "group"
        if scale != "auto":
            self.advantage_scale = scale

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
