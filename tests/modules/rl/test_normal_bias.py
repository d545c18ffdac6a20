"""Rewards without normal bias: by hand, and their thresholds on a policy whose posteriors are known."""

import lightning as L
import pytest
import torch

from mrg.metrics import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN, RulesLabeler
from mrg.metrics.mccs import mccs
from mrg.modules.grpo import GRPOModule
from mrg.modules.rl.advantage import group_advantages
from mrg.modules.rl.normal_bias import (
    NormalBias,
    NormalBiasReward,
    condition_weights,
    learn_all,
    positives,
    weighted_mccs,
)
from mrg.modules.rl.reward import Reward
from tests.modules.rl.test_corpus_f1 import CARDIOMEGALY, EDEMA, FRACTURE, POSTERIORS, labels, train
from tests.modules.test_grpo import SETTINGS, FixedData, saved  # noqa: F401
from tests.nested import nested


def test_weighted_mccs_by_hand():
    """Six matched denials and one missed finding: (6 - w) / (6 + w), .71 without weights."""
    denied = dict.fromkeys(range(3, 9), NEGATIVE)
    target, preds = labels({CARDIOMEGALY: POSITIVE, **denied}), labels({CARDIOMEGALY: NEGATIVE, **denied})
    for weight, cosine in ((1.0, 5 / 7), (2.0, 4 / 8), (10.0, -4 / 16)):
        weights = torch.ones(13, dtype=torch.float64)
        weights[CARDIOMEGALY] = weight
        assert weighted_mccs(preds, target, weights, 0.0).tolist() == pytest.approx([max(cosine, 0)])
    assert weighted_mccs(target, target, weights).tolist() == [1.0]
    assert weighted_mccs(labels({}), labels({}), weights).tolist() == [1.0]
    assert weighted_mccs(labels({}), target, weights).tolist() == [0.0]
    alone, lightly = labels({CARDIOMEGALY: POSITIVE}), torch.full((13,), 0.5, dtype=torch.float64)
    assert weighted_mccs(alone, alone, lightly).tolist() == pytest.approx([1.0])


def test_weighted_mccs_with_equal_weights_is_mccs():
    generator = torch.Generator().manual_seed(0)
    preds, target = (torch.randint(0, 4, (200, 14), generator=generator) for _ in range(2))
    got = weighted_mccs(preds, target, torch.full((13,), 3.0, dtype=torch.float64), 0.3)
    assert torch.allclose(got, mccs(preds, target, 0.3, reduction="none"), atol=1e-12)


def test_positives_by_hand():
    target = labels(*[{CARDIOMEGALY: POSITIVE, EDEMA: UNCERTAIN, FRACTURE: NEGATIVE}] * 4, {}, {})
    preds = labels({EDEMA: POSITIVE}, {FRACTURE: NEGATIVE}, {EDEMA: POSITIVE, FRACTURE: POSITIVE},
                   {CARDIOMEGALY: POSITIVE, EDEMA: POSITIVE}, {EDEMA: NEGATIVE}, {EDEMA: POSITIVE})  # fmt: skip
    assert positives(preds, target, 0.2).tolist() == pytest.approx([0.5**0.5, 0, 0.5, 1, 0.2, 0])


def test_weights_of_the_training_split():
    given = labels(
        *[{CARDIOMEGALY: POSITIVE}] * 40, *[{EDEMA: UNCERTAIN}] * 8, *[{FRACTURE: POSITIVE}], {EDEMA: NEGATIVE}
    )
    weights = condition_weights(given, "inverse_prevalence")
    assert (weights[CARDIOMEGALY], weights[EDEMA], weights[FRACTURE]) == (1, 5, 10)  # 40 is too much
    chosen = condition_weights(given, {"Edema": 3.0})
    assert chosen.tolist() == [3.0 if column == EDEMA else 1.0 for column in range(13)]
    with pytest.raises(ValueError, match="No training report states Pneumonia: remove it from model"):
        condition_weights(given, {"Pneumonia": 2.0})


def test_a_reward_without_such_parts_labels_no_training_report():
    labeled = []

    def labeler(texts):
        labeled.extend(texts)
        return RulesLabeler()(texts)

    learn_all({}, ["Edema."], labeler)
    assert labeled == []
    learn_all({"rare_mccs": NormalBiasReward("rare_mccs", NormalBias())}, ["Edema."], labeler)
    assert labeled == ["Edema."]


def test_the_margin_is_that_of_mccs():
    assert NormalBiasReward("rare_mccs", NormalBias()).margin == 0.5


def test_above_constant_by_hand():
    reward = NormalBiasReward("above_constant", NormalBias(threshold=0.2), margin=0.0)
    denied = dict.fromkeys(range(3, 9), NEGATIVE)
    constant, finding = labels(denied)[0], labels({CARDIOMEGALY: POSITIVE, **denied})
    reward.learn(["normal"] * 3 + ["enlarged"], torch.cat([constant.expand(3, 14), finding]))
    assert torch.equal(reward.learned, constant)
    below = (6 / 7) ** 0.5  # cosine of the two
    # On the study with the finding the constant gets sqrt(6 / 7), on a normal study 1.
    got = reward.scores(torch.cat([finding, constant[None], finding]), torch.cat([finding, finding, constant[None]]))
    assert got.tolist() == pytest.approx([0.25 * below + 1 - below, 0.25 * below, 0.25 * below])


def test_subtracting_a_constant_report_changes_no_advantage():
    """What depends on the study alone cancels in its group, whatever the report of the constant."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(0, 4, (5, 14), generator=generator).repeat_interleave(4, 0)
    preds = torch.randint(0, 4, (20, 14), generator=generator)
    own = mccs(preds, target, 0.0, reduction="none")
    above = own - mccs(target[:1].expand_as(target), target, 0.0, reduction="none")
    for scale in ("group", "none"):
        got, expected = (group_advantages(values, 4, scale) for values in (above, own))
        assert torch.allclose(got, expected, atol=1e-9)
    one = NormalBiasReward("above_constant", NormalBias(threshold=0.5), 0.0)
    one.learned = target[0]
    assert torch.allclose(one.scores(preds, target), own, atol=1e-12)  # odds of 1


@pytest.mark.parametrize("threshold", [0.09, 0.15, 0.22, 0.5])
@pytest.mark.parametrize("name", ["positives", "above_constant"])
def test_the_fixed_point_is_the_threshold(name, threshold):
    reward = NormalBiasReward(name, NormalBias(threshold=threshold), margin=0.5)
    reward.learned = labels({})[0]
    final = train(reward.scores, lambda q: None, steps=100, rate=60.0)
    assert torch.equal(final > 0.5, threshold < POSTERIORS)


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_weights_do_not_move_the_threshold(weight):
    """Six denials are right on every study; the report states the finding or denies it."""
    reward = NormalBiasReward("rare_mccs", NormalBias(condition_weights={"Edema": weight}), margin=0.0)
    reward.learned = condition_weights(labels({EDEMA: POSITIVE}), {"Edema": weight})
    denied = dict.fromkeys(range(6, 12), NEGATIVE)

    def with_denials(preds, target):
        sides = []
        for side in (preds, target):
            row = side.clone()
            row[:, EDEMA] = torch.where(side[:, EDEMA] == POSITIVE, POSITIVE, NEGATIVE)
            for column, value in denied.items():
                row[:, column] = value
            sides.append(row)
        return reward.scores(*sides)

    assert torch.equal(train(with_denials, lambda q: None, steps=100) > 0.5, POSTERIORS > 0.5)


def test_parts_of_the_reward():
    reward = Reward(RulesLabeler(), 0.0, 0.25, think="absent", positives_weight=0.5, above_constant_weight=0.25)
    assert set(reward.normal_bias) == {"positives", "above_constant"}
    with pytest.raises(ValueError, match="above_constant of the reward needs the training reports"):
        reward(["<report>Edema.</report>"], ["Edema."], ["a"])
    learn_all(reward.normal_bias, ["No edema.", "No edema.", "Edema.", " "], RulesLabeler())
    rewards = reward(["<report>Edema.</report>", "<report>No edema.</report>", "Edema."], ["Edema."] * 3, list("abc"))
    assert rewards.parts["positives"].tolist() == [1, 0, 0]
    assert rewards.parts["above_constant"].tolist() == [1, 0, 0]
    assert rewards.total.tolist() == [1, 0.25, 0]
    with pytest.raises(ValueError, match="computed from training reports, but there are none"):
        learn_all(reward.normal_bias, [" "], RulesLabeler())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "normal_bias.threshold to be above 0 and at most 0.5, but got 0"),
        ({"threshold": 0.7}, "at most 0.5, but got 0.7"),
        ({"condition_weights": "prevalence"}, "'inverse_prevalence' or factors by condition, but got 'prevalence'"),
        ({"condition_weights": {"Oedema": 2}}, "to be findings, but got 'Oedema'"),
        ({"condition_weights": {"Edema": 0}}, r"condition_weights\.Edema to be above 0, but got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        NormalBias(**settings)


def test_what_was_learned_is_part_of_the_checkpoint(saved, studies):  # noqa: F811
    module = GRPOModule(**nested(policy=saved, group_size=2, kl_coef=0.0, rare_mccs_weight=1.0, **SETTINGS))
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, FixedData(studies[:4], batch_size=2))
    checkpoint = {"state_dict": {}}
    module.on_save_checkpoint(checkpoint)
    expected = condition_weights(RulesLabeler()([study.report for study in studies[:4]]), "inverse_prevalence")
    assert torch.equal(checkpoint["normal_bias"]["rare_mccs"]["learned"], expected)
    assert len(CONDITIONS) == len(expected) + 1
    again = NormalBiasReward("rare_mccs", NormalBias())
    again.load_state_dict(checkpoint["normal_bias"]["rare_mccs"])
    assert torch.equal(again.learned, expected)


def test_weights_that_change_when_a_run_is_resumed_are_used():
    reports = ["Edema."] * 2
    found = RulesLabeler()(reports)
    first, resumed = (NormalBiasReward("rare_mccs", NormalBias(condition_weights={"Edema": x})) for x in (2.0, 5.0))
    for reward in (first, resumed):
        reward.learn(reports, found)
    resumed.load_state_dict(first.state_dict())
    assert float(resumed.learned[CONDITIONS.index("Edema")]) == 5.0
