"""Settings of the loss and of the reward: their bounds, and the warnings about what has no effect."""

import pytest

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
