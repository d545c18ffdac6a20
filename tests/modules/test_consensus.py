import pytest
import torch

from mrg.errors import UserError
from mrg.metrics import RulesLabeler, parse_completion
from mrg.metrics.consensus import CHOICES, choose_samples
from mrg.modules.consensus import Consensus
from mrg.modules.rollout.sampling import sample


class Words:
    """Labels reports by their words, so that the reports of random weights differ in their findings."""

    name = "words"

    def __call__(self, texts):
        rows = [[sum(map(ord, text)) // (i + 1) % 3 for i in range(13)] for text in texts]
        return torch.tensor([[*row, 0] if text else [0] * 14 for row, text in zip(rows, texts, strict=True)])


@pytest.fixture
def reported(monkeypatch):
    """Takes any text of random weights for a report."""

    def parse(text, think="required"):
        return parse_completion(f"<report>{text}</report>", "absent")

    monkeypatch.setattr("mrg.modules.consensus.parse_completion", parse)


def written(policy, batch, **options):
    consensus = Consensus(**{"num_samples": 4, **options})
    consensus.labeler, consensus.margin = Words(), 0.1
    rollout = consensus.write(policy, policy.embed(batch), batch.study_id, 6)
    return consensus, rollout


def test_the_chosen_report_is_one_of_the_samples_and_greedy_is_as_without(policy, batch, reported):
    consensus, rollout = written(policy, batch)
    assert len(rollout.texts) == len(rollout.completion_ids) == len(rollout.truncated) == 4
    alone = sample(policy, policy.embed(batch), 1, 6, temperature=0.0).texts
    for i, name in enumerate(batch.study_id):
        note = consensus.notes[name]
        report = parse_completion(f"<report>{rollout.texts[i]}</report>", "absent").report
        labels = "".join(map(str, Words()([report])[0].tolist())) if report else ""
        assert note["sample_labels"][note["choices"]["mccs"]] == labels
        assert note["greedy"] == parse_completion(f"<report>{alone[i]}</report>", "absent").report
        stated = [sum(row[1:2] == "1" for row in note["sample_labels"]) / 4]
        assert [note["shares"]["Cardiomegaly"]] == stated  # `Words` has no uncertain findings


def test_samples_depend_on_the_seed_and_the_studies_alone(policy, batch, reported):
    (first, one), (_, again), (_, other) = (written(policy, batch, seed=seed) for seed in (0, 0, 1))
    assert one.texts == again.texts
    assert one.texts != other.texts
    assert first.cost["studies"] == 4
    assert first.cost["tokens"] > first.cost["greedy_tokens"] > 0
    first.reset()
    assert (first.notes, first.cost["tokens"]) == ({}, 0)


@pytest.mark.parametrize("choose", CHOICES)
def test_every_choice_among_the_same_samples(policy, batch, reported, choose):
    consensus, rollout = written(policy, batch, choose=choose)
    for name in batch.study_id:
        note = consensus.notes[name]
        labels = torch.tensor([[list(map(int, row or "0" * 14)) for row in note["sample_labels"]]])
        has_report = torch.tensor([[bool(row) for row in note["sample_labels"]]])
        if choose != "likelihood":
            best = int(choose_samples(labels, torch.zeros(1, 4), choose, 0.1, has_report))
            chosen = note["choices"][choose]
            # Without log-probabilities, equal scores may have another order.
            assert best == chosen or len(set(note["sample_labels"])) < 4 or len(set(note["choices"].values())) < 4
    likely = rollout.old_logps.sum(1)
    assert torch.isfinite(likely).all()


def test_thresholds_choose_the_sample_that_matches_them(policy, batch, reported):
    consensus = Consensus(4, operating_point="f1")
    consensus.labeler, consensus.thresholds = Words(), torch.full((13,), 1.01)
    rollout = consensus.write(policy, policy.embed(batch), batch.study_id, 6)
    for name, text in zip(batch.study_id, rollout.texts, strict=True):
        rows = [row for row in consensus.notes[name]["sample_labels"] if row]
        report = parse_completion(f"<report>{text}</report>", "absent").report
        own = sum(label == 1 for label in Words()([report])[0].tolist()[:13])
        assert own == min(row[:13].count("1") for row in rows)


def test_samples_without_a_report_are_all_the_same(policy, batch):
    """Random weights write no tags: the scores are 0, and the most likely sample is taken."""
    consensus = Consensus(3)
    consensus.labeler = RulesLabeler()
    consensus.write(policy, policy.embed(batch), batch.study_id, 4)
    for note in consensus.notes.values():
        assert (note["greedy"], note["sample_labels"], note["agreement"]) == ("", [""] * 3, 0)
        assert len(set(note["choices"].values())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "Expected --samples to be at least 2 for --choose and --operating_point, but got 1"),
        ({"temperature": 0.0}, "Expected --sample_temperature to be above 0, but got 0: all 4 samples would be the"),
        ({"choose": "best"}, "Expected --choose to be mccs, ce_f1, likelihood, medoid, but got 'best'"),
        ({"operating_point": "precision=80"}, "Expected --operating_point to be f1, precision=P or recall=R"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        Consensus(**{"num_samples": 4, **options})
