"""The reward of a module that learns from one: built from settings, and its running counts in checkpoints."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import Metric

from mrg.errors import UserError
from mrg.log import log
from mrg.metrics import CEF1
from mrg.modules.base import ReportModule
from mrg.modules.rl.advantage import Scale
from mrg.modules.rl.audit import warn_of_exploits
from mrg.modules.rl.corpus_f1 import CorpusF1Reward
from mrg.modules.rl.credit import check_credit
from mrg.modules.rl.entropy import EntropyBonus
from mrg.modules.rl.normal_bias import NormalBiasReward, learn_all
from mrg.modules.rl.reward import Reward
from mrg.modules.rl.settings import LossSettings, RewardSettings
from mrg.modules.rl.watch import Watch


class RewardedModule(ReportModule):
    """A `ReportModule` with a reward."""

    reward: Reward
    reward_settings: RewardSettings
    group_size: int
    corpus: dict[str, CorpusF1Reward]
    normal_bias: dict[str, NormalBiasReward]
    advantage_scale: Scale
    decoupled: bool
    spreads_credit: bool
    evidence_share: float
    entropy_bonus: EntropyBonus
    part_weights: dict[str, float]
    watch: Watch
    events: list[dict[str, Any]]

    def set_reward(self, reward: RewardSettings, loss: LossSettings) -> None:
        """Build the reward, and choose how advantages are made from it.

        Args:
            reward: Weights of the parts of the reward.
            loss: Settings with the scale of the advantages and the order of normalizing and summing.
        """
        self.reward = Reward(self.labeler, margin=self.margin, think=self.think, **reward.parts())
        self.reward_settings = reward
        if reward.overlong_weight and reward.overlong_cache > self.max_new_tokens:
            raise UserError(
                f"Expected model.init_args.reward.overlong_cache to be at most max_new_tokens ({self.max_new_tokens}), "
                f"but got {reward.overlong_cache}."
            )
        self.corpus, self.normal_bias = self.reward.corpus, self.reward.normal_bias
        self.advantage_scale = "batch" if self.corpus else "group"
        if loss.advantage_scale != "auto":
            self.advantage_scale = loss.advantage_scale
        self.spreads_credit, self.evidence_share = loss.credit == "finding", 0.0
        if self.spreads_credit:
            check_credit(self.labeler, self.reward)
        self.decoupled = loss.aggregation == "normalize_then_sum"
        self.part_weights = self.reward.weights | {"overlong": reward.overlong_weight}
        self.watch, self.events = Watch(self.part_weights), []
        if self.decoupled and self.corpus:
            log.warning(
                "model.init_args.loss.aggregation normalize_then_sum divides the corpus F1 by the deviation of each "
                "group, so that a hallucinated finding costs as much as a correct one gains: use sum_then_normalize."
            )

    def setup(self, stage: str) -> None:
        """Also take from the training split what parts of the reward need."""
        super().setup(stage)
        if stage == "fit" and self.normal_bias:
            learn_all(self.normal_bias, self.trainer.datamodule.train_reports(), self.labeler)  # type: ignore[attr-defined]
        if stage == "fit" and self.global_rank == 0 and isinstance(self.reward, Reward):
            studies: Any = self.trainer.datamodule.splits["train"]  # type: ignore[attr-defined]
            warn_of_exploits(self.reward, studies)

    def on_validation_epoch_end(self) -> None:
        """Also pass what the validation found to the corpus-F1 rewards and the watch."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return
        watched = self.scores[self.watch.score]
        assert isinstance(watched, Metric)
        if (diverges := self.watch.validated(float(watched.compute()))) is not None:
            self.log("val/reward_diverges", float(diverges))
            if diverges:
                text = self.watch.describe()
                self.events.append(
                    {"step": self.trainer.fit_loop.total_batch_idx, "event": "reward_diverges", "text": text}
                )
                log.warning(text)
        if self.corpus:
            metric = self.scores["ce_f1"]
            assert isinstance(metric, CEF1)
            table = self.trainer.strategy.reduce(metric.confusion.clone(), reduce_op="sum")
            for scorer in self.corpus.values():
                scorer.validated(table)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the running counts of the corpus-F1 rewards, and what others took from the training split."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["corpus_f1"] = {name: scorer.state_dict() for name, scorer in self.corpus.items()}
        checkpoint["watch"] = self.watch.state_dict()
        checkpoint["entropy_bonus"] = self.entropy_bonus.state_dict()
        checkpoint["normal_bias"] = {name: scorer.state_dict() for name, scorer in self.normal_bias.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also resume what `on_save_checkpoint` saves."""
        super().on_load_checkpoint(checkpoint)
        for key, part in (("watch", self.watch), ("entropy_bonus", self.entropy_bonus)):
            if key in checkpoint:
                part.load_state_dict(checkpoint[key])
        for key, scorers in (("corpus_f1", self.corpus), ("normal_bias", self.normal_bias)):
            for name, state in checkpoint.get(key, {}).items():
                if name in scorers:
                    scorers[name].load_state_dict(state)
