"""The held-out score that is watched: which one, and when the reward rises while it falls."""

import csv
import json

import pytest

from mrg.modules.rl.watch import Watch, watched_score
from tests.callbacks.resuming import Stop, fit, newest
from tests.modules.test_grpo import saved  # noqa: F401


@pytest.mark.parametrize(
    ("weights", "score"),
    [
        ({"mccs": 0.75, "ce_f1": 0.0, "format": 0.25}, "ce_f1"),
        ({"mccs": 0.0, "format": 1.0, "bleu": 0.5}, "ce_f1"),
        ({"mccs": 0.0, "corpus_f1": 1.0}, "mccs"),
        ({"positives": 1.0}, "mccs"),
        ({"above_constant": 0.5, "ce_f1": 0.5}, "ce_f1_macro"),
    ],
)
def test_the_score_is_not_part_of_the_reward(weights, score):
    assert watched_score(weights) == score


def play(watch, rounds):
    """Validations, each after two rounds with this mean reward."""
    found = []
    for reward, score in rounds:
        watch.rewards += [reward - 0.1, reward + 0.1]
        found.append(watch.validated(score))
    return found


def test_it_takes_three_validations():
    assert play(Watch({"mccs": 1.0}), [(0.1, 0.5), (0.2, 0.4), (0.3, 0.3), (0.4, 0.35)]) == [None, None, True, False]
    assert play(Watch({"mccs": 1.0}), [(0.1, 0.5), (0.2, 0.6), (0.3, 0.3)])[2] is False
    assert play(Watch({"mccs": 1.0}), [(0.3, 0.5), (0.2, 0.4), (0.1, 0.3)])[2] is False  # both fall


def test_a_validation_without_rounds_does_not_count():
    watch = Watch({"mccs": 1.0})
    assert watch.validated(0.9) is None
    assert watch.history == []


def test_a_resumed_watch_says_the_same():
    rounds = [(0.1, 0.5), (0.2, 0.4), (0.3, 0.3)]
    first, again = Watch({"mccs": 1.0}), Watch({"mccs": 1.0})
    play(first, rounds[:2])
    first.rewards.append(0.3)
    again.load_state_dict(first.state_dict())
    assert again.validated(0.3) is True
    assert "0.100 to 0.300" in again.describe()
    assert "val/ce_f1 falls (50.0 % to 30.0 %)" in again.describe()


def test_another_reward_is_not_compared_with_the_one_before():
    first, again = Watch({"mccs": 1.0, "format": 0.0}), Watch({"mccs": 3.0})
    play(first, [(0.1, 0.5), (0.2, 0.4)])
    again.load_state_dict(first.state_dict())
    again.rewards.append(0.9)
    assert again.validated(0.3) is None


def diverge(watch, score):
    """Find the same at each validation but the first."""
    watch.history = [*watch.history, [len(watch.history), score]]
    return len(watch.history) > 1


def test_an_event_has_the_step_of_its_validation_and_is_not_repeated(saved, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Watch, "validated", diverge)
    with pytest.raises(Stop):
        fit(tmp_path, "grpo", saved, stop=(5, "step"), save_every=3)  # after the validation of round 4
    fit(tmp_path, "grpo", saved, checkpoint=newest(tmp_path))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if float(row["val/reward_diverges"] or 0)]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert steps == [event["step"] for event in events]
    assert len(events) == 3
    assert {event["event"] for event in events} == {"reward_diverges"}
    assert "while val/ce_f1 falls" in events[0]["text"]
