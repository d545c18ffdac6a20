"""The corpus-F1 reward: by hand, its fixed point on a policy whose posteriors are known, and what others stop at."""

import pytest
import torch

from mrg.metrics import CEF1, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN, RulesLabeler
from mrg.metrics.ce import confusion, ratio, report_counts
from mrg.metrics.mccs import mccs
from mrg.modules.rl.corpus_f1 import CorpusF1, CorpusF1Reward, corpus_rewards
from mrg.modules.rl.reward import Reward

CARDIOMEGALY, EDEMA, FRACTURE = (CONDITIONS.index(name) for name in ("Cardiomegaly", "Edema", "Fracture"))


def labels(*rows):
    result = torch.zeros(len(rows), 14, dtype=torch.long)
    for row, stated in enumerate(rows):
        for column, value in stated.items():
            result[row, column] = value
    return result


def test_scores_by_hand():
    reward = CorpusF1Reward(CorpusF1(source="fixed", start=0.3))
    target = labels(*[{CARDIOMEGALY: POSITIVE, EDEMA: UNCERTAIN, FRACTURE: NEGATIVE}] * 4)
    preds = labels({}, {CARDIOMEGALY: UNCERTAIN, EDEMA: POSITIVE}, {FRACTURE: POSITIVE}, {EDEMA: NEGATIVE})
    silent = 13 * 0.3
    expected = [silent, silent + 2 * (2 - 0.3), silent - 0.3, silent]
    assert reward.scores(preds, target).tolist() == pytest.approx(expected)
    negative = CorpusF1Reward(CorpusF1(source="fixed", start=0.3, uncertain="negative"))
    assert negative.scores(preds, target).tolist() == pytest.approx([silent, silent - 0.3, silent - 0.3, silent])
    ruled_out = CorpusF1Reward(CorpusF1(source="fixed", start=0.3), denials=True)
    denied = labels({FRACTURE: NEGATIVE}, {CARDIOMEGALY: NEGATIVE}, {FRACTURE: POSITIVE}, {})
    assert ruled_out.scores(denied, target).tolist() == pytest.approx([silent + 1.7, silent - 0.3, silent, silent])


def test_the_sum_over_reports_orders_policies_as_the_corpus_f1_does():
    """Dinkelbach: at F = F(a) the mean score of b exceeds that of a exactly where F(b) > F(a)."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (200, 14), generator=generator)
    metric = CEF1(average="micro")
    outputs = [torch.randint(0, 4, (200, 14), generator=generator) for _ in range(20)]
    values = [float((metric.reset(), metric.update(preds, target), metric.compute())[-1]) for preds in outputs]
    reward = CorpusF1Reward(CorpusF1(source="fixed", start=values[0]))
    scores = [float(reward.scores(preds, target).mean()) for preds in outputs]
    assert [s > scores[0] for s in scores[1:]] == [v > values[0] for v in values[1:]]


def test_f1_is_that_of_the_metric():
    generator = torch.Generator().manual_seed(1)
    preds, target = (torch.randint(0, 4, (500, 14), generator=generator) for _ in range(2))
    for uncertain in ("positive", "negative"):
        micro = CorpusF1Reward(CorpusF1(source="validation", uncertain=uncertain))
        macro = CorpusF1Reward(CorpusF1(average="macro", source="rounds", decay=0.0, uncertain=uncertain))
        micro.validated(confusion(preds, target))
        macro.update(preds, target)
        metric = CEF1(average="micro", uncertain=uncertain)
        metric.update(preds, target)
        assert micro.f1.tolist() == pytest.approx([float(metric.compute())] * 13)
        assert micro.counts.dtype == torch.float64  # as the running counts of rounds
        each = CEF1(average="none", uncertain=uncertain)
        each.update(preds, target)
        assert macro.f1.tolist() == pytest.approx(each.compute().tolist())


def test_running_average_by_hand():
    reward = CorpusF1Reward(CorpusF1(conditions=["Edema"], decay=0.75, start=0.0))
    target = labels({EDEMA: POSITIVE}, {EDEMA: POSITIVE}, {}, {})
    reward.update(labels({EDEMA: POSITIVE}, {}, {EDEMA: POSITIVE}, {}), target)  # each 2 of 4, one of them right
    tp, stated, true = 0.25 * 0.25, 0.75 * 0.025 + 0.25 * 0.5, 0.75 * 0.025 + 0.25 * 0.5
    assert reward.counts[:, 0].tolist() == pytest.approx([tp, stated, true])
    assert reward.f1.tolist() == pytest.approx([2 * tp / (stated + true)])
    before = reward.f1
    reward.validated(confusion(target, target))
    reward.update(target[:0], target[:0])
    assert torch.equal(reward.f1, before)  # neither is a round


def test_studies_that_are_drawn_more_often_count_less_by_hand():
    """Edema is stated in the first of two reports, which is drawn three times as often."""
    reward = CorpusF1Reward(CorpusF1(conditions=["Edema"], decay=0.0))
    target = labels({EDEMA: POSITIVE}, {})
    reward.update(target, target, torch.tensor([1 / 3, 1.0]))
    assert reward.counts[:, 0].tolist() == pytest.approx([0.25] * 3)
    reward.update(target, target)
    assert reward.counts[:, 0].tolist() == pytest.approx([0.5] * 3)


def test_a_validation_without_reports_changes_nothing():
    reward = CorpusF1Reward(CorpusF1(source="validation"))
    before = reward.f1
    reward.validated(torch.zeros(14, 4, 4, dtype=torch.int64))
    assert torch.equal(reward.f1, before)
    assert corpus_rewards(None, ["corpus_f1"])["corpus_f1"].settings == CorpusF1()


def test_a_rare_condition_weighs_more_in_the_macro_form_but_not_without_limit():
    reward = CorpusF1Reward(CorpusF1(average="macro", conditions=["Cardiomegaly", "Edema", "Fracture"], decay=0.0))
    both = labels(*[{CARDIOMEGALY: POSITIVE}] * 6, *[{EDEMA: POSITIVE}] * 3, *[{}] * 91)
    reward.update(both, both)  # .12, .06 and 0 stated plus true findings per report: mean .06
    assert reward.weights.tolist() == pytest.approx([0.5, 1, 10])
    wrong = labels(*[{CARDIOMEGALY: POSITIVE, FRACTURE: POSITIVE}] * 6, *[{EDEMA: POSITIVE}] * 3, *[{}] * 91)
    reward.update(wrong, both)  # .12, .06 and .06: mean .08
    assert reward.weights.tolist() == pytest.approx([2 / 3, 4 / 3, 4 / 3])
    assert reward.f1.tolist() == pytest.approx([1, 1, 0])


POSTERIORS = torch.tensor(
    [0.02, 0.05, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.38, 0.45, 0.55, 0.7], dtype=torch.float64
)
SHARES = torch.tensor([40, 20, 10, 8, 6, 4, 3, 2, 2, 2, 1, 1, 1], dtype=torch.float64) / 100
"""Of each kind of study: its posterior of edema, and its share of the corpus."""


def four_cases():
    """Stated and true, stated, true, neither: labels, and their probabilities under stating with `q`."""
    preds = labels({EDEMA: POSITIVE}, {EDEMA: POSITIVE}, {}, {})
    target = labels({EDEMA: POSITIVE}, {}, {EDEMA: POSITIVE}, {})
    return preds, target, lambda q: torch.stack([q * POSTERIORS, q * (1 - POSTERIORS), (1 - q) * POSTERIORS,
                                                 (1 - q) * (1 - POSTERIORS)], 1)  # fmt: skip


def train(score, update, steps=3000, rate=20.0):
    """Exact policy gradient of a Bernoulli policy with one logit per kind of study."""
    preds, target, cases = four_cases()
    logits = torch.zeros(len(POSTERIORS), dtype=torch.float64)
    for _ in range(steps):
        logits = logits.clamp(-6, 6).requires_grad_()
        q = logits.sigmoid()
        ((SHARES[:, None] * cases(q)).sum(0) @ score(preds, target)).backward()
        update(q.detach())
        logits = (logits + rate * logits.grad / SHARES).detach()
    return logits.sigmoid()


def f1_of(stated):
    tp = (SHARES * stated * POSTERIORS).sum()
    return float(2 * tp / (SHARES * (stated + POSTERIORS)).sum())


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_the_fixed_point_is_the_f1_optimal_threshold(average):
    """Lipton et al. (2014): the best threshold is half of the best F1; brute force over thresholds finds both."""
    best, threshold = max((f1_of((p <= POSTERIORS).double()), float(p)) for p in POSTERIORS)
    reward = CorpusF1Reward(CorpusF1(average=average, conditions=["Edema"], decay=0.5))
    _, _, cases = four_cases()

    def update(q):
        tp, stated, true = (SHARES[:, None] * cases(q)).sum(0)[:3]
        now = torch.stack([tp, tp + stated, tp + true])[:, None]
        reward.counts = 0.5 * reward.counts + 0.5 * now

    final = train(reward.scores, update)
    assert float(reward.f1) == pytest.approx(best, rel=0.01)
    assert torch.equal(final > 0.5, best / 2 < POSTERIORS)
    assert threshold > best / 2 > float(POSTERIORS[threshold > POSTERIORS].max())
    assert best / 2 < 0.25  # far below the threshold of the scores below


@pytest.mark.parametrize("name", ["ce_f1", "mccs"])
def test_scores_of_one_report_stop_at_one_half(name):
    def score(preds, target):
        if name == "ce_f1":
            return ratio(report_counts(preds, target, "positive")[:, :, :13].sum(2), "f1", 1)
        return mccs(preds, target, 0.5, reduction="none")

    final = train(score, lambda q: None)
    assert torch.equal(final > 0.5, POSTERIORS > 0.5)


def test_denials_do_not_charge_for_findings():
    """Where nothing is stated of a condition, denying the others is worth what it was."""
    reward = corpus_rewards(CorpusF1(source="fixed", start=0.5), ["denial_f1"])["denial_f1"]
    target = labels({CARDIOMEGALY: NEGATIVE, EDEMA: NEGATIVE})
    quiet, found = labels({CARDIOMEGALY: NEGATIVE}), labels({CARDIOMEGALY: NEGATIVE, FRACTURE: POSITIVE})
    assert reward.scores(quiet, target).tolist() == reward.scores(found, target).tolist()


def test_as_part_of_the_reward():
    settings = {"corpus_f1": CorpusF1(source="fixed", start=0.3), "corpus_f1_weight": 0.5}
    reward = Reward(RulesLabeler(), 0.0, 0.25, think="absent", **settings)
    assert set(reward.corpus) == {"corpus_f1"}
    texts = ["<report>The heart is enlarged.</report>", "<report>Clear lungs.</report>", "The heart is enlarged."]
    rewards = reward(texts, ["Cardiomegaly."] * 3, list("abc"))
    silent = 13 * 0.3
    assert rewards.parts["corpus_f1"].tolist() == pytest.approx([silent + 1.7, silent, 0])
    assert rewards.total.tolist() == pytest.approx([0.5 * (silent + 1.7) + 0.25, 0.5 * silent + 0.25, 0])
    with pytest.raises(ValueError, match="labeler"):
        Reward(None, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": "example"}, "corpus_f1.average to be 'micro' or 'macro', but got 'example'"),
        ({"uncertain": "own"}, "corpus_f1.uncertain to be 'positive' or 'negative'"),
        ({"source": "val"}, "corpus_f1.source to be 'rounds', 'validation' or 'fixed'"),
        ({"start": 1.5}, "corpus_f1.start to be from 0 to 1, but got 1.5"),
        ({"decay": 1.0}, "corpus_f1.decay to be from 0 to 1"),
        ({"conditions": ["Rib"]}, "'Rib'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        CorpusF1(**settings)


def test_state_goes_on():
    generator = torch.Generator().manual_seed(2)
    rounds = [[torch.randint(0, 4, (20, 14), generator=generator) for _ in range(2)] for _ in range(4)]
    whole, first = (CorpusF1Reward(CorpusF1(average="macro")) for _ in range(2))
    for preds, target in rounds:
        whole.update(preds, target)
    for preds, target in rounds[:2]:
        first.update(preds, target)
    resumed = CorpusF1Reward(CorpusF1(average="macro"))
    resumed.load_state_dict(first.state_dict())
    for preds, target in rounds[2:]:
        resumed.update(preds, target)
    assert torch.equal(whole.counts, resumed.counts)
    assert torch.equal(whole.scores(*rounds[0]), resumed.scores(*rounds[0]))


@pytest.mark.parametrize("settings", [{"conditions": ["Edema"]}, {"conditions": 5}, {"uncertain": "negative"}])
def test_counts_of_other_conditions_are_not_resumed(settings):
    """One column would be compared with the F1 of each of the thirteen."""
    state = CorpusF1Reward(CorpusF1(start=0.6)).state_dict()
    changed = CorpusF1Reward(CorpusF1(**settings))
    changed.load_state_dict(state)
    silent = torch.zeros(1, 14, dtype=torch.long)
    assert float(changed.scores(silent, silent)) == pytest.approx(0.2 * len(changed.columns))
    same = CorpusF1Reward(CorpusF1())
    same.load_state_dict(state)
    assert float(same.scores(silent, silent)) == pytest.approx(0.6 * 13)
