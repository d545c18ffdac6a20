"""The reference report as a member of dead groups: by hand, and in training."""

import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.modules.rl.reference import bad_groups, with_references
from mrg.modules.rl.reward import RewardError
from mrg.modules.rollout.sampling import Rollout
from tests.modules.test_grpo import module_on, saved, trainer  # noqa: F401


def test_which_groups_are_changed():
    signal = torch.tensor([0.2, 0.2, 0.9, 0.9, 0.1, 0.4, 0.0, 0.0])
    dead = torch.tensor([True, True, False, True])
    assert bad_groups(signal, torch.tensor([1.0, 0.9, 1.0, 0.5]), 2, dead) == [0, 3]


def test_the_place_of_a_completion_by_hand():
    rollout = Rollout(
        torch.tensor([[5, 1, 0], [5, 6, 7], [8, 1, 0], [9, 1, 0]]),
        torch.tensor([[True, True, False], [True] * 3, [True, True, False], [True, True, False]]),
        -torch.ones(4, 3),
        list("abcd"),
        torch.tensor([False, True, True, False]),
    )
    found = with_references(rollout, [1], [[3, 4, 5, 1]], ["reference"], 2, pad_id=0)
    assert found.completion_ids.tolist() == [[5, 1, 0, 0], [5, 6, 7, 0], [3, 4, 5, 1], [9, 1, 0, 0]]
    assert found.completion_mask.sum(1).tolist() == [2, 3, 4, 2]
    assert found.old_logps.tolist() == [[-1.0] * 3 + [0.0]] * 2 + [[0.0] * 4, [-1.0] * 3 + [0.0]]
    assert found.texts == ["a", "b", "reference", "d"]
    assert found.truncated.tolist() == [False, True, False, False]
    assert rollout.texts == list("abcd")  # the rollout that was given is as it was
    assert rollout.truncated.tolist() == [False, True, True, False]
    short = with_references(rollout, [1], [[3, 1]], ["reference"], 2, pad_id=0)
    assert short.completion_ids.tolist() == [[5, 1, 0], [5, 6, 7], [3, 1, 0], [9, 1, 0]]  # no wider than it was


@pytest.mark.parametrize("limit", [200, 3])
def test_dead_groups_of_a_round_get_their_reference(saved, studies, limit):  # noqa: F811
    """An untrained policy writes no valid report, so the rewards of each group are all 0; the reference scores 1."""
    module, _ = module_on(saved, studies, add_reference=True, ce_f1_weight=1.0, mccs_weight=0.0, max_new_tokens=limit)
    batch = StudyCollator(module.policy.processor, "Report:")(studies[:2])
    prompts = module.policy.embed(batch)
    rollout = module.rollout(prompts, batch)
    rewards = module.rewards(rollout, batch)
    assert not rewards.total.any()
    found, paid = module.add_references(prompts, batch, rollout, rewards)
    if limit == 3:  # too short for a reference
        assert (found.texts, module.reference_share) == (rollout.texts, 0.0)
        return
    assert module.reference_share == 1
    assert [found.texts[0], found.texts[4]] == [f"<report>{study.report}</report>" for study in studies[:2]]
    assert paid.total.tolist() == [1.25, 0, 0, 0] * 2
    assert found.texts[1:4] == rollout.texts[1:4]
    # Its log-probabilities are those of the policy, so that its ratio is 1.
    with torch.no_grad():
        logps = module.policy.logps(prompts, found.completion_ids, found.completion_mask).logps
    assert torch.allclose(found.old_logps[[0, 4]], logps[[0, 4]], atol=1e-5)
    advantages = module.advantages(paid)
    assert float(advantages[0]) == pytest.approx(1.5, abs=1e-3)
    assert (advantages[1:4] < 0).all()


def test_a_reward_that_fails_on_a_reference_leaves_the_state_before_the_round(saved, studies):  # noqa: F811
    module, _ = module_on(saved, studies, add_reference=True, ce_f1_weight=1.0, mccs_weight=0.0, max_new_tokens=200)
    batch = StudyCollator(module.policy.processor, "Report:")(studies[:2])
    prompts = module.policy.embed(batch)
    rollout = module.rollout(prompts, batch)
    rewards = module.rewards(rollout, batch)

    def fail(*args):
        raise RewardError("no reward")

    module.reward, module.intact = fail, False  # after the completions have been rewarded
    with pytest.raises(RewardError):
        module.add_references(prompts, batch, rollout, rewards)
    assert module.intact


def test_references_do_not_count_as_what_the_policy_has_found(saved, studies):  # noqa: F811
    settings = {"add_reference": True, "corpus_f1_weight": 1.0, "mccs_weight": 0.0, "max_new_tokens": 200}
    module, data = module_on(saved, studies, **settings)
    scorer = module.corpus["corpus_f1"]
    before = scorer.counts.clone()
    trainer(1).fit(module, data)
    assert module.reference_share > 0
    # A random policy states nothing: true positives and stated findings only decay. The references have findings.
    assert torch.allclose(scorer.counts[:2], 0.9 * before[:2])
    assert (scorer.counts[2] > 0.9 * before[2] + 1e-6).any()


def test_what_is_logged_and_watched_is_what_the_policy_has_written(saved, studies):  # noqa: F811
    """A random policy earns nothing; that its groups have learned from references does not change that."""
    settings = {"add_reference": True, "ce_f1_weight": 1.0, "mccs_weight": 0.0, "max_new_tokens": 200}
    module, data = module_on(saved, studies, **settings)
    run = trainer(1)
    run.fit(module, data)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["train/references"] > 0
    assert logged["train/dead_groups"] == 1 - logged["train/references"]
    assert {logged[name] for name in ("reward/total", "reward/total_std", "reward/ce_f1", "reward/format")} == {0.0}
    assert logged["train/nothing_found"] == 1
    assert not any(name.startswith("recall/") and value for name, value in logged.items())
    assert logged["advantage/right"] > 0  # of the references
    assert module.watch.rewards == [0.0]
    assert {row["reward"] for row in module.samples} == {0.0}
