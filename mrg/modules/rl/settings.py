"""Settings of the loss and of the reward. Each group checks itself when it is built, before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

from mrg.errors import UserError
from mrg.log import log
from mrg.modules.checks import check_choice, check_counts, check_range
from mrg.modules.rl.advantage import Scale
from mrg.modules.rl.corpus_f1 import CorpusF1
from mrg.modules.rl.entropy import EntropySettings
from mrg.modules.rl.loss import LOSS_TYPES, LossType, check_loss_options
from mrg.modules.rl.normal_bias import NormalBias
from mrg.modules.rl.reward import WeightedScorer

Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The policy loss and the advantages that it weighs.

    Args:
        type: Loss of a token and its weight. `"grpo"` clips the ratio, and averages over tokens, then completions;
            `"bnpo"` and `"dapo"` average over all tokens of the step or of the round; `"dr_grpo"` divides by a
            constant; `"gspo"` takes one ratio per completion; `"cispo"` clips the weight of a token, not its gradient;
            `"sapo"` replaces the clip by a sigmoid.
        clip_low: The ratio is clipped below at 1 - clip_low.
        clip_high: The ratio is clipped above at 1 + clip_high.
        dual_clip: Upper limit of the ratio where the advantage is negative, at least 1 + clip_high.
        advantage_scale: What divides the advantages: the standard deviation of the `"group"`, that of the `"batch"` of
            all ranks, or `"none"`; `"auto"` is `"batch"` with a corpus-F1 reward, otherwise `"group"`.
        aggregation: `"sum_then_normalize"` compares completions by their total reward; `"normalize_then_sum"` (GDPO)
            normalizes each part of the reward within its group first.
        credit: `"completion"` gives each token the advantage of its completion; `"finding"` spreads it by the words
            that state each finding.
        mask_truncated: Exclude truncated completions from the loss; they still count in the mean of their group.
        sapo_temperature_pos: Temperature of the `sapo` loss where the advantage is positive, above 0.
        sapo_temperature_neg: Temperature of the `sapo` loss elsewhere, above 0.
        off_policy_limit: Limit in nats per token beyond which a completion with a negative advantage that the policy
            has moved away from is left out; None leaves none out.
        entropy: Entropy bonus, and the share of uncertain tokens.
    """

    type: LossType = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    advantage_scale: Scale | Literal["auto"] = "auto"
    aggregation: Aggregation = "sum_then_normalize"
    credit: Literal["completion", "finding"] = "completion"
    mask_truncated: bool = False
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    off_policy_limit: float | None = None
    entropy: EntropySettings = dataclasses.field(default_factory=EntropySettings)

    def __post_init__(self) -> None:
        for name in ("sapo_temperature_pos", "sapo_temperature_neg", "off_policy_limit"):
            value = getattr(self, name)
            if value is not None:
                check_range(f"loss.{name}", value, "above 0", 0 < value < math.inf)
        check_choice("loss.type", self.type, LOSS_TYPES)
        check_choice("loss.advantage_scale", self.advantage_scale, ("auto", *get_args(Scale)))
        check_choice("loss.aggregation", self.aggregation, get_args(Aggregation))
        if self.aggregation == "normalize_then_sum" and self.advantage_scale != "auto":
            raise UserError(
                "model.init_args.loss.aggregation normalize_then_sum divides by the deviations of the group and of the "
                f"batch: set advantage_scale to auto, not {self.advantage_scale}."
            )
        check_choice("loss.credit", self.credit, ("completion", "finding"))
        for setting, value in (("aggregation", "normalize_then_sum"), ("type", "gspo")):
            if self.credit == "finding" and getattr(self, setting) == value:
                reason = "adds parts of different scales" if value != "gspo" else "has one ratio for a whole completion"
                raise UserError(
                    f"model.init_args.loss.credit finding cannot be combined with {setting} {value}, which {reason}."
                )
        check_loss_options(self.type, self.clip_low, self.clip_high, self.dual_clip, where="model.init_args.loss.")

    def options(self) -> dict[str, Any]:
        """Arguments of `grpo_loss`."""
        names = ("clip_low", "clip_high", "dual_clip", "sapo_temperature_pos", "sapo_temperature_neg")
        return {"loss_type": self.type, **{name: getattr(self, name) for name in names}}

    def warn_without_effect(self, num_steps: int, has_servers: bool = False) -> None:
        """Warn about clips and masks where each round makes a single step, so that every ratio is 1."""
        if num_steps == 1 and not has_servers and self.off_policy_limit is not None:
            log.warning(
                "model.init_args.loss.off_policy_limit has no effect: a round makes one step with its own completions "
                "(num_minibatches and num_iterations are 1, and there are no servers)."
            )
        if num_steps == 1 and (self.clip_low, self.clip_high, self.dual_clip) != (0.2, 0.2, None):
            log.warning(
                "model.init_args.loss.clip_low, clip_high and dual_clip have no effect: a round makes one step, whose "
                "ratios are all 1 (num_minibatches and num_iterations are 1)."
            )


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """Weights of the parts of the reward.

    Args:
        mccs_weight: Weight of MCCS.
        format_weight: Weight of the format score.
        ce_f1_weight: Weight of the CE-F1 of a single report.
        corpus_f1_weight: Weight of the report's contribution to the F1 of findings over the corpus, for rare findings.
        denial_f1_weight: Weight of the corpus F1 of what is ruled out.
        corpus_f1: Settings of both corpus-F1 parts.
        rare_mccs_weight: Weight of MCCS in which rare conditions weigh more.
        positives_weight: Weight of the agreement of the stated findings, in which denials earn nothing.
        above_constant_weight: Weight of MCCS above that of the best constant report on the same study.
        normal_bias: Settings of these three parts.
        overlong_weight: Weight of a score that falls for completions that are almost too long (DAPO's soft penalty).
        overlong_cache: Tokens below `max_new_tokens` over which that score falls from 1 to 0.
        scorers: Further parts of the reward, each a scorer with a weight.
    """

    mccs_weight: float = 0.75
    format_weight: float = 0.25
    ce_f1_weight: float = 0.0
    corpus_f1_weight: float = 0.0
    denial_f1_weight: float = 0.0
    corpus_f1: CorpusF1 = dataclasses.field(default_factory=CorpusF1)
    rare_mccs_weight: float = 0.0
    positives_weight: float = 0.0
    above_constant_weight: float = 0.0
    normal_bias: NormalBias = dataclasses.field(default_factory=NormalBias)
    overlong_weight: float = 0.0
    overlong_cache: int = 32
    scorers: list[WeightedScorer] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        check_range("reward.overlong_weight", self.overlong_weight, "at least 0", self.overlong_weight >= 0)
        check_counts(1, "reward.", overlong_cache=self.overlong_cache)

    def parts(self) -> dict[str, Any]:
        """Arguments of `Reward`, which depends on texts alone."""
        return {name: value for name, value in vars(self).items() if not name.startswith("overlong_")}
