import time

import pytest
import torch

from mrg.metrics import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.modules.rl.monitor import Monitor, Outcome
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
