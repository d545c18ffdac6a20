"""The reward of a module that learns from one: built from settings, and its running counts in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.log import log
from mrg.metrics import CEF1
from mrg.modules.base import ReportModule
from mrg.modules.policy.ranks import gather
from mrg.modules.rl.advantage import Scale, group_advantages
from mrg.modules.rl.audit import warn_of_exploits
from mrg.modules.rl.corpus_f1 import CorpusF1Reward
from mrg.modules.rl.credit import check_credit, finding_credit
from mrg.modules.rl.decoupled import decoupled_terms, part_statistics, scaled
from mrg.modules.rl.entropy import EntropyBonus
from mrg.modules.rl.normal_bias import NormalBiasReward, learn_all
from mrg.modules.rl.overlong import with_overlong
from mrg.modules.rl.reward import Reward, Rewards
from mrg.modules.rl.settings import LossSettings, RewardSettings
from mrg.modules.rl.watch import Watch
from mrg.modules.rollout.sampling import Rollout


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
        self.watch = Watch(self.part_weights)
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
        self.evidence_share = float(covered.sum() / mask.sum())
        return credit

    def part_statistics(self, rewards: Rewards) -> dict[str, float]:
        """Log keys of what each part adds to the advantages of all ranks; none if the sum is normalized."""
        if not self.decoupled:
            return {}
        terms = decoupled_terms(rewards.parts, self.part_weights, self.group_size, rewards.present)
        return part_statistics(terms, rewards.parts, self.group_size, rewards.present)

    def settings_values(self) -> dict[str, float]:
        """Log keys of what settings change during training."""
        values = {}
        if self.spreads_credit:
            values["train/evidence"] = self.evidence_share
        if self.entropy_bonus.settings.target is not None:
            values["train/entropy_coef"] = self.entropy_bonus.coef
        return values

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
                log.warning(self.watch.describe())
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
