import argparse
import random
from pathlib import Path

import numpy as np
import pytest

from mrg.errors import UserError
from mrg.metrics.nlg import nlg_scores
from mrg.metrics.scorer import ReportScore
from mrg.metrics.scores.group import Sums
from mrg.metrics.scores.named import bleu_counts, learned_group, make_groups, nlg_group, parse_scores
from mrg.metrics.trl import as_reward


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    words = ["the", "heart", "is", "normal", "no", "edema", "effusion", "left", "small", "."]
    pairs = [(rng.choices(words, k=rng.randrange(12)), rng.choices(words, k=rng.randrange(1, 12))) for _ in range(30)]
    return [" ".join(pred) for pred, _ in pairs], [" ".join(target) for _, target in pairs]


def test_corpus_bleu_of_the_counts_is_that_of_pycocoevalcap(texts):
    rows = nlg_group("none").rows
    values = np.concatenate([bleu_counts(*texts), np.zeros((30, 3))], 1)
    scores = Sums(values, rows).corpus()
    expected = nlg_scores(*texts, meteor=False).corpus
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"):
        assert scores[name] == pytest.approx(expected[name], rel=1e-9)


def test_bleu_counts_by_hand():
    counts = bleu_counts(["no edema no edema", ""], ["no edema . no", "edema"])
    # "no" twice and "edema" once; "no edema" once; nothing longer is shared.
    assert counts.tolist() == [[3, 1, 0, 0, 4, 3, 2, 1, 4, 4], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]


@pytest.mark.slow  # METEOR starts Java
def test_the_values_of_nlg_are_those_of_its_function(texts):
    preds, target = texts
    group = nlg_group("r2gen-mimic")
    scores = Sums(group.values(preds, target), group.rows).corpus()
    expected = nlg_scores(preds, target, "r2gen-mimic")
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr"):
        assert scores[name] == pytest.approx(expected.corpus[name], rel=1e-9)
    assert scores["METEOR"] == pytest.approx(float(expected.per_report["METEOR"].mean()))


def test_names_in_the_order_of_the_table():
    assert parse_scores("judge, CE,finding,ce") == ["ce", "finding", "judge"]


def test_radcliq_needs_a_checkpoint_of_chexbert():
    options = argparse.Namespace(bertscore=["a"], radgraph=["b"], ratescore=None, chexbert=None)
    with pytest.raises(UserError, match="it needs --bertscore ENCODER, --radgraph CHECKPOINT"):
        learned_group("radcliq", options, None, {})


@pytest.mark.parametrize(
    ("name", "given"), [("ratescore", ["a"]), ("ratescore", list("abcd")), ("bertscore", []), ("radgraph", list("abc"))]
)
def test_too_few_or_too_many_files_of_a_score(name, given):
    options = argparse.Namespace(bertscore=None, radgraph=None, ratescore=None, chexbert=None)
    setattr(options, name, given)
    with pytest.raises(UserError, match="expected "):
        learned_group(name, options, None, {})


def test_a_scorer_says_that_lower_is_better():
    def missing(preds, target):
        return [len(set(t.split()) - set(p.split())) for p, t in zip(preds, target, strict=True)]

    scorers = {"up": lambda preds, target: [1.0] * len(preds), "down": missing}
    missing.higher_is_better = False
    (up,), (down,) = (
        group.rows for group in make_groups((), argparse.Namespace(), None, scorers, Path("judged.jsonl"))
    )
    assert (up.higher_is_better, up.convention) == (True, "mean over reports")
    assert (down.higher_is_better, down.convention) == (False, "mean over reports; lower is better")
    assert not ReportScore(missing).higher_is_better
    with pytest.raises(ValueError, match="higher_is_better=True, but that of missing is False"):
        as_reward(missing)
