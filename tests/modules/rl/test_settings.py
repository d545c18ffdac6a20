"""Settings of the loss and of the reward: their bounds, and the warnings about what has no effect."""

import dataclasses
import inspect
import math

import pytest

from mrg.metrics import MCCS
from mrg.metrics.mccs import mccs
from mrg.modules.rl.corpus_f1 import CorpusF1
from mrg.modules.rl.entropy import EntropySettings
from mrg.modules.rl.loss import check_loss_options, grpo_loss
from mrg.modules.rl.normal_bias import NormalBias, NormalBiasReward, weighted_mccs
from mrg.modules.rl.reward import Reward, WeightedScorer
from mrg.modules.rl.settings import LossSettings, RewardSettings


@pytest.mark.parametrize("name", ["sapo_temperature_pos", "sapo_temperature_neg", "off_policy_limit"])
def test_numbers_above_0(name):
    assert getattr(LossSettings(**{name: 1e-9}), name) == 1e-9
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"loss\.{name} to be above 0, but got {value}"):
            LossSettings(**{name: value})


def test_choices():
    for name in ("type", "advantage_scale", "aggregation", "credit"):
        with pytest.raises(ValueError, match=rf"loss\.{name} to be .*, but got 'other'"):
            LossSettings(**{name: "other"})
    for scale in ("auto", "group", "batch", "none"):
        LossSettings(advantage_scale=scale)
        if scale != "auto":
            with pytest.raises(ValueError, match=f"set advantage_scale to auto, not {scale}"):
                LossSettings(aggregation="normalize_then_sum", advantage_scale=scale)
    LossSettings(aggregation="normalize_then_sum")
    with pytest.raises(ValueError, match=r"model\.init_args\.loss\.clip_low to be at least 0, but got -0.1"):
        LossSettings(clip_low=-0.1)


def test_credit_by_finding_excludes_what_it_cannot_be_combined_with():
    LossSettings(credit="finding", type="dapo")
    with pytest.raises(ValueError, match="aggregation normalize_then_sum, which adds parts of different scales"):
        LossSettings(credit="finding", aggregation="normalize_then_sum")
    with pytest.raises(ValueError, match="type gspo, which has one ratio for a whole completion"):
        LossSettings(credit="finding", type="gspo")


def test_options_are_arguments_of_the_loss():
    given = {
        "clip_low": 0.1, "clip_high": 0.3, "dual_clip": 4.0, "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0,
    }  # fmt: skip
    assert LossSettings(type="bnpo", **given).options() == {"loss_type": "bnpo", **given}


@pytest.mark.parametrize(
    ("given", "num_steps", "servers", "named"),
    [
        ({}, 1, False, []),
        ({"clip_low": 0.1}, 1, False, ["clip_low"]),
        ({"clip_high": 0.3}, 1, True, ["clip_low"]),
        ({"dual_clip": 2.0}, 1, False, ["clip_low"]),
        ({"dual_clip": 2.0}, 2, False, []),
        ({"off_policy_limit": 1.0}, 1, False, ["off_policy_limit"]),
        ({"off_policy_limit": 1.0}, 1, True, []),
        ({"off_policy_limit": 1.0}, 2, False, []),
    ],
)
def test_warnings_about_what_has_no_effect(caplog, given, num_steps, servers, named):
    LossSettings(**given).warn_without_effect(num_steps, servers)
    assert [message.split("loss.")[1].split()[0].strip(",") for message in caplog.messages] == named


def test_parts_of_the_reward_leave_out_the_penalty_of_lengths():
    parts = RewardSettings(overlong_weight=1.0, overlong_cache=1, mccs_weight=0.5).parts()
    assert parts["mccs_weight"] == 0.5
    assert not [name for name in parts if name.startswith("overlong")]
    assert len(parts) == 11


def test_defaults_are_those_of_the_documentation():
    loss = dataclasses.asdict(LossSettings())
    entropy = loss.pop("entropy")
    assert loss == {
        "type": "grpo", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "advantage_scale": "auto",
        "aggregation": "sum_then_normalize", "credit": "completion", "mask_truncated": False,
        "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05, "off_policy_limit": None,
    }  # fmt: skip
    assert entropy == {
        "coef": 0.0, "target": None, "delta": 0.005, "least": 0.0, "most": 1.0, "top_quantile": 1.0,
    }  # fmt: skip
    reward = dataclasses.asdict(RewardSettings())
    weights = {name: value for name, value in reward.items() if name.endswith("_weight") and value}
    assert weights == {"mccs_weight": 0.75, "format_weight": 0.25}
    assert (reward["overlong_cache"], reward["scorers"]) == (32, [])
    assert reward["corpus_f1"] == {
        "average": "micro", "conditions": 13, "uncertain": "positive", "source": "rounds", "start": 0.2, "decay": 0.9,
    }  # fmt: skip
    assert reward["normal_bias"] == {"threshold": 0.15, "condition_weights": "inverse_prevalence"}
    assert WeightedScorer("module:name") == WeightedScorer("module:name", 1.0, "")


@pytest.mark.parametrize(
    ("function", "settings"),
    [(grpo_loss, LossSettings()), (check_loss_options, LossSettings()), (Reward, RewardSettings())],
)
def test_functions_have_the_defaults_of_the_settings(function, settings):
    """Except where None stands for the defaults of a group."""
    given = {"loss_type": settings.type} if isinstance(settings, LossSettings) else {}
    given |= {name: getattr(settings, name) for name in vars(settings) if name not in ("corpus_f1", "normal_bias")}
    defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    shared = set(given) & set(defaults)
    assert len(shared) >= 4
    for name in shared:
        own = list(defaults[name]) if isinstance(defaults[name], tuple) else defaults[name]
        assert own == given[name], name


def test_margins_are_one_half():
    for function in (Reward, NormalBiasReward, weighted_mccs, mccs, MCCS):
        assert inspect.signature(function).parameters["margin"].default == 0.5


@pytest.mark.parametrize(
    ("name", "fitting", "others"),
    [
        ("coef", (0.0, 9.0), (-1e-9, math.inf, math.nan)),
        ("target", (1e-9, None), (0.0, math.inf, math.nan)),
        ("delta", (1e-9, 9.0), (0.0, math.inf, math.nan)),
        ("least", (0.0, 1.0), (-1e-9, 1.1, math.nan)),
        ("top_quantile", (1e-9, 1.0), (0.0, 1.1, math.nan)),
    ],
)
def test_bounds_of_the_entropy_settings(name, fitting, others):
    for value in fitting:
        assert getattr(EntropySettings(**{name: value}), name) == value
    for value in others:
        with pytest.raises(ValueError, match=rf"entropy\.{name} to be .*, but got {value}"):
            EntropySettings(**{name: value})
    with pytest.raises(ValueError, match="least to be from 0 to most"):
        EntropySettings(most=math.inf)


@pytest.mark.parametrize(
    ("name", "fitting", "others"),
    [
        ("start", (0, 1), (-0.1, 1.1, math.nan)),
        ("decay", (0, 0.99), (-0.1, 1, math.nan)),
    ],
)
def test_bounds_of_the_corpus_f1(name, fitting, others):
    for value in fitting:
        assert getattr(CorpusF1(**{name: value}), name) == value
    for value in others:
        with pytest.raises(ValueError, match=rf"corpus_f1\.{name} to be from 0 to 1.*, but got {value}"):
            CorpusF1(**{name: value})


def test_bounds_of_the_normal_bias():
    for threshold in (1e-9, 0.5):
        assert NormalBias(threshold).odds == pytest.approx(threshold / (1 - threshold))
    for threshold in (0.0, 0.51, math.nan):
        with pytest.raises(ValueError, match=f"threshold to be above 0 and at most 0.5, but got {threshold}"):
            NormalBias(threshold)
    assert NormalBias(condition_weights={"Edema": 1e-9}).condition_weights == {"Edema": 1e-9}
    for factor in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"condition_weights\.Edema to be above 0, but got {factor}"):
            NormalBias(condition_weights={"Edema": factor})
    with pytest.raises(ValueError, match="to be 'inverse_prevalence' or factors by condition, but got 'prevalence'"):
        NormalBias(condition_weights="prevalence")
    with pytest.raises(ValueError, match=r"keys of .* to be findings, but got 'No Finding'"):
        NormalBias(condition_weights={"No Finding": 2.0})
