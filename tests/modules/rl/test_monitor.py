import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mrg.modules
from mrg.metrics import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.modules.rl.monitor import LOWER, Monitor, Outcome, Patience, first_group
from mrg.modules.rl.reward import Rewards
from mrg.modules.rollout.sampling import Rollout

CARDIOMEGALY, EDEMA, NO_FINDING = (CONDITIONS.index(name) for name in ("Cardiomegaly", "Edema", "No Finding"))


def labels(*rows):
    result = torch.zeros(len(rows), 14, dtype=torch.long)
    for row, stated in enumerate(rows):
        for column, value in stated.items():
            result[row, column] = value
    return result


def a_round():
    """Two groups of two: in the first both texts and both rewards are equal."""
    mask = torch.arange(5) < torch.tensor([1, 2, 3, 5])[:, None]
    rollout = Rollout(
        torch.zeros(4, 5, dtype=torch.long),
        mask,
        torch.zeros(4, 5),
        ["clear", "clear", "edema", "large heart"],
        torch.tensor([False, False, False, True]),
    )
    total = torch.tensor([0.35, 0.35, 0.1, 0.5], dtype=torch.float64)
    parts = {"mccs": total, "format": torch.tensor([1, 1, 1, 0], dtype=torch.float64)}
    found = labels({NO_FINDING: POSITIVE}, {EDEMA: NEGATIVE}, {EDEMA: UNCERTAIN}, {CARDIOMEGALY: POSITIVE})
    stated = labels(*[{EDEMA: POSITIVE}] * 2, *[{EDEMA: UNCERTAIN, CARDIOMEGALY: POSITIVE, NO_FINDING: NEGATIVE}] * 2)
    return rollout, Rewards(total, parts, (found, stated))


def outcome(rollout, rewards, teaches=True, **sums):
    sums = {name: torch.tensor(value) for name, value in sums.items()}
    return Outcome.of(rollout, rewards, 2, 100, torch.tensor([teaches] * len(rollout.texts)), sums)


def test_a_round_by_hand():
    values = Monitor(2).round(outcome(*a_round()))
    assert values == pytest.approx(
        {
            "reward/total": 0.325,
            "reward/total_std": (0.0825 / 3) ** 0.5,  # (.025^2 + .025^2 + .225^2 + .175^2) / 3
            "reward/mccs": 0.325,
            "reward/mccs_std": (0.0825 / 3) ** 0.5,
            "reward/format": 0.75,
            "reward/format_std": 0.5,
            "train/missing": 0,
            "train/dead_groups": 0.5,
            "train/distinct": 0.75,  # one text and two, of four
            "train/truncated": 0.25,
            "train/nothing_found": 0.5,  # No Finding is none, and neither is what is ruled out
            "train/length": 2.75,
            "train/length_min": 1,
            "train/length_max": 5,
            "recall/edema": 0.25,
            "recall/cardiomegaly": 0.5,
        }
    )


def test_phases_add_up_and_are_forgotten():
    monitor = Monitor(2)
    for name in ("rollout", "policy", "rollout"):
        with monitor.phase(name):
            time.sleep(0.02)
    values = monitor.round(outcome(*a_round()))
    assert 0.04 <= values["seconds/rollout"] < 0.2
    assert 0.02 <= values["seconds/policy"] < 0.1
    assert values["train/tokens_per_second"] == pytest.approx(
        100 / (values["seconds/rollout"] + values["seconds/policy"])
    )
    assert not any(name.startswith("seconds/") for name in monitor.round(outcome(*a_round())))
    monitor.seconds = {"selection": 60.0, "rollout": 2.0}  # whose completions are not those of the round
    values = monitor.round(outcome(*a_round()))
    assert (values["seconds/selection"], values["train/tokens_per_second"]) == (60.0, 50.0)


def test_missing_rewards_are_counted_and_left_out_of_means():
    rollout, rewards = a_round()
    scored = torch.tensor([True, False, True, True])
    part = torch.tensor([1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    present = {"part": torch.tensor([True, False, True, False]), "nowhere": torch.zeros(4, dtype=torch.bool)}
    parts = {"part": part, "nowhere": torch.zeros(4, dtype=torch.float64)}
    values = Monitor(2).round(outcome(rollout, Rewards(rewards.total, parts, rewards.labels, present, scored)))
    assert values["train/missing"] == 0.25
    assert values["train/dead_groups"] == 0.5  # one reward alone has nothing to be compared with
    assert values["reward/total"] == pytest.approx((0.35 + 0.1 + 0.5) / 3)
    assert (values["reward/part"], values["reward/part_std"]) == pytest.approx((2, 2**0.5))
    assert "reward/nowhere" not in values


def test_memory_that_does_not_suffice_is_told_with_its_remedy():
    message = r"in the phase 'policy' .*: lower model\.init_args\.micro_batch_tokens"
    with pytest.raises(RuntimeError, match=message), Monitor(2).phase("policy"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    source = "".join(path.read_text() for path in Path(mrg.modules.__file__).parent.glob("*.py"))
    assert set(re.findall(r"phase\(\"(\w+)\"\)", source)) == set(LOWER)  # each phase has a remedy


def test_sums_are_divided_by_what_they_were_summed_over():
    """Two ranks, one of which computed nothing."""
    live = outcome(*a_round(), loss=0.5, grad_norm=2.0, entropy=6.0, kl=1.0, computed=4.0, counted=2.0)
    dead = outcome(*a_round(), teaches=False, loss=0.1, grad_norm=2.0)
    whole = Outcome.joined([live, dead])
    values = Monitor(2).round(whole)
    assert values["train/entropy"] == pytest.approx(6 / 4)
    assert values["train/kl"] == pytest.approx(1 / 2)
    assert values["train/loss"] == pytest.approx(0.3)
    assert values["train/grad_norm"] == 2
    assert whole.teaches
    assert not Outcome.joined([dead, dead]).teaches
    assert "train/entropy" not in Monitor(2).round(dead)


def test_a_round_of_several_ranks_is_one_round():
    rollout, rewards = a_round()

    def part(rows):
        few = Rollout(*(x[rows] for x in (rollout.completion_ids, rollout.completion_mask, rollout.old_logps)),
                      rollout.texts[rows], rollout.truncated[rows])  # fmt: skip
        parts = {name: value[rows] for name, value in rewards.parts.items()}
        return outcome(few, Rewards(rewards.total[rows], parts, tuple(x[rows] for x in rewards.labels)))

    joined = Outcome.joined([part(slice(0, 2)), part(slice(2, 4))])
    assert joined.num_tokens == 200
    assert Monitor(2).round(joined) == pytest.approx(Monitor(2).round(outcome(rollout, rewards)))


def test_mean_advantages_by_what_was_found():
    """A correct finding, findings none of which is true, and no finding; the first group's mean is that of silence."""
    rollout, rewards = a_round()
    advantages = torch.tensor([0.5, -0.5, 1.0, -3.0])
    found = Outcome.of(rollout, rewards, 2, 100, torch.ones(4, dtype=torch.bool), {}, advantages)
    values = Monitor(2).round(found)
    assert (values["advantage/right"], values["advantage/silent"]) == (-1.0, 0.0)
    assert "advantage/wrong" not in values
    rewards.labels[0][3] = labels({EDEMA: POSITIVE, NO_FINDING: NEGATIVE})[0]
    rewards.labels[1][3] = labels({CARDIOMEGALY: POSITIVE, NO_FINDING: NEGATIVE})[0]
    assert Monitor(2).round(found)["advantage/wrong"] == -3.0
    assert torch.equal(Outcome.joined([found, found]).advantages, torch.cat([advantages, advantages]))
    assert Outcome.joined([outcome(rollout, rewards)]).advantages is None


def test_dead_groups_are_those_of_the_signal():
    """Rewards of the first group are equal, and what is compared differs in both groups, or in none."""
    rollout, rewards = a_round()
    signal = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert Monitor(2).round(outcome(rollout, rewards), signal)["train/dead_groups"] == 0
    assert Monitor(2).round(outcome(rollout, rewards), signal * 0)["train/dead_groups"] == 1


def test_a_reward_of_a_single_completion_has_no_deviation():
    rollout, rewards = a_round()
    present = {"mccs": torch.tensor([False, False, False, True])}
    values = Monitor(2).round(outcome(rollout, rewards._replace(present=present)))
    assert (values["reward/mccs"], values["reward/mccs_std"]) == (0.5, 0.0)


def test_sums_are_values_of_the_log_except_the_counts():
    sums = {"loss": 0.5, "kl": 3.0, "logp_gap": 6.0, "corrected": 1.0, "off_policy": 2.0, "computed": 4.0}
    values = Monitor(2).round(outcome(*a_round(), **sums, counted=2.0))
    logged = {name: values[f"train/{name}"] for name in (*sums, "counted") if f"train/{name}" in values}
    assert logged == {"loss": 0.5, "kl": 1.5, "logp_gap": 1.5, "corrected": 0.25, "off_policy": 0.5}
    nothing = Monitor(2).round(outcome(*a_round(), kl=0.0, entropy=0.0, computed=0.0, counted=0.0))
    assert not {"train/kl", "train/entropy"} & set(nothing)


def test_patience_with_losses_and_rounds():
    patience = Patience(2)
    assert patience.takes(torch.tensor(1.0), 0)
    assert not patience.takes(torch.tensor(1.0), 1, float("inf"))
    assert patience.state_dict() == {"bad_steps": 1, "dead_rounds": 0}
    with pytest.raises(RuntimeError, match=r"loss was inf in 2 steps in a row, the last in round 7: check that"):
        patience.takes(torch.tensor(1.0), 7, float("inf"))
    patience.load_state_dict({})
    assert patience.state_dict() == {"bad_steps": 0, "dead_rounds": 0}
    for dead in (True, False, True):
        patience.watch(dead)
    resumed = Patience(2)
    resumed.load_state_dict(patience.state_dict())
    assert resumed.dead_rounds == 1
    with pytest.raises(RuntimeError, match="equal rewards in 2 rounds in a row"):
        resumed.watch(True)
    resumed.load_state_dict({"bad_steps": 1, "dead_rounds": 0})
    assert not Patience(3).takes(torch.tensor(float("nan")), 0)
    with pytest.raises(RuntimeError, match=r"norm was nan in 2 steps in a row, the last in round 0: lower model"):
        resumed.takes(torch.tensor(float("nan")), 0)


def test_samples_of_the_first_study():
    rollout, rewards = a_round()
    scored, present = torch.tensor([True, False, True, True]), {"format": torch.tensor([False, True, True, True])}
    batch = SimpleNamespace(study_id=["s1", "s2"], target=["No edema.", "Edema."])
    rows = first_group(rollout, rewards._replace(scored=scored, present=present), batch, 2, 9)
    common = {"round": 9, "id": "s1", "completion": "clear", "truncated": False, "target": "No edema."}
    assert rows == [
        {**common, "reward": 0.35, "mccs": 0.35, "format": None},
        {**common, "reward": None, "mccs": 0.35, "format": 1.0},
    ]
