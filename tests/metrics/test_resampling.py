import itertools
import logging

import numpy as np
import pytest
import torch
from scipy import stats

from mrg.metrics import CONVENTIONS, ce_f1, mccs
from mrg.metrics.resampling import ReportSums, bootstrap, percentile_interval, randomization_p
from mrg.metrics.tables import macro_informedness
from tests.metrics.test_ce import random_labels


def systems(num=60, agreement=0.7, seed=0):
    """Two systems, the first of which agrees more often with the references."""
    _, target = random_labels(num, seed)
    other, noise = random_labels(num, seed + 1)
    better = torch.where(torch.rand(num, 14, generator=torch.Generator().manual_seed(seed)) < agreement, target, noise)
    return better, other, target


def expected_scores(preds, target, margin=0.5):
    scores = {"MCCS": float(mccs(preds, target, margin)), "informedness": macro_informedness(preds, target)}
    return {**scores, **{f"CE-F1 {name}": float(ce_f1(preds, target, **s)) for name, s in CONVENTIONS.items()}}


def test_corpus_scores_equal_the_metrics():
    preds, _, target = systems()
    preds[:9], target[:9] = 0, 0  # also where a report or a condition has nothing
    target[:, 5] = preds[:, 5] = 2
    got = ReportSums(preds, target, 0.3).corpus()
    assert got == pytest.approx(expected_scores(preds, target, 0.3), abs=1e-12)


def test_a_resample_is_scored_as_its_reports():
    """Weighted sums give what the metrics give on the reports drawn, each as often as drawn."""
    preds, _, target = systems()
    sums = ReportSums(preds, target)
    drawn = np.random.default_rng(0).integers(0, 60, (5, 60))
    got = sums.scores(np.stack([sums.columns[index].sum(0) for index in drawn]))
    for trial, index in enumerate(drawn):
        expected = expected_scores(preds[index], target[index])
        assert {name: value[trial] for name, value in got.items()} == pytest.approx(expected, abs=1e-12)


def test_bootstrap_agrees_with_scipy():
    """The same percentile interval up to the draws, for a mean and for a ratio of sums."""
    preds, other, target = systems(400)
    drawn = bootstrap([ReportSums(preds, target), ReportSums(other, target)], 4000)
    index = np.arange(400)
    cases = {
        "MCCS": lambda i: mccs(preds[i], target[i]) - mccs(other[i], target[i]),
        "CE-F1 macro-13+": lambda i: ce_f1(preds[i], target[i], "macro") - ce_f1(other[i], target[i], "macro"),
    }
    for name, statistic in cases.items():
        reference = stats.bootstrap(
            (index,), lambda i, s=statistic: float(s(i)), vectorized=False, n_resamples=1000, method="percentile", rng=0
        )
        low, high = percentile_interval(drawn[0][name] - drawn[1][name])
        width = high - low
        assert low == pytest.approx(reference.confidence_interval.low, abs=0.08 * width)
        assert high == pytest.approx(reference.confidence_interval.high, abs=0.08 * width)


def test_randomization_agrees_with_scipy():
    preds, other, target = systems(12, agreement=0.3)
    a, b = ReportSums(preds, target), ReportSums(other, target)
    got = randomization_p(a, b, 20_000)
    per_report = [mccs(x, target, reduction="none").numpy() for x in (preds, other)]
    # 12 reports have 4,096 exchanges, which scipy goes through one by one.
    exact = stats.permutation_test(
        per_report, lambda x, y, axis: x.mean(axis) - y.mean(axis), permutation_type="samples", n_resamples=np.inf
    )
    assert got["MCCS"] == pytest.approx(exact.pvalue, abs=0.015)

    def micro(x, y):
        return float(ce_f1(torch.stack(list(x)), target) - ce_f1(torch.stack(list(y)), target))

    rng, gap, extreme = np.random.default_rng(0), abs(micro(preds, other)), 0
    for _ in range(1000):
        swap = torch.from_numpy(rng.random(12) < 0.5)[:, None]
        x, y = torch.where(swap, other, preds), torch.where(swap, preds, other)
        extreme += abs(micro(x, y)) >= gap - 1e-12
    assert got["CE-F1 micro-13+"] == pytest.approx(extreme / 1000, abs=0.05)


def test_p_is_large_without_and_small_with_a_difference():
    preds, other, target = systems(200)
    a, b = ReportSums(preds, target), ReportSums(other, target)
    assert set(randomization_p(a, a, 99).values()) == {1.0}
    p = randomization_p(a, b, 999)
    assert p["CE-F1 micro-14"] == p["MCCS"] == 1 / 1000
    # Which of the two comes first does not matter.
    assert randomization_p(b, a, 999) == pytest.approx(p, abs=0.02)


def test_p_is_uniform_where_systems_differ_by_chance_alone():
    values = []
    for seed in range(60):
        first, second = random_labels(40, 10 + seed)
        target = random_labels(40, 1000 + seed)[0]
        p = randomization_p(ReportSums(first, target), ReportSums(second, target), 200)
        values.append(p["CE-F1 micro-13+"])
    assert stats.kstest(values, "uniform").pvalue > 0.01


def test_draws_repeat_with_the_seed_and_are_shared():
    preds, other, target = systems()
    a, b = ReportSums(preds, target), ReportSums(other, target)
    first, second = bootstrap([a, b], 50, seed=3), bootstrap([b, a, a], 50, seed=3)
    for name, values in first[0].items():
        np.testing.assert_allclose(values, second[1][name], rtol=0, atol=1e-12)
        np.testing.assert_allclose(values, second[2][name], rtol=0, atol=1e-12)
    assert not np.array_equal(first[0]["MCCS"], bootstrap([a], 50, seed=4)[0]["MCCS"])
    assert randomization_p(a, b, 100, 5) == randomization_p(a, b, 100, 5)


def test_extras_nothing_written_and_no_reports():
    preds, _, target = systems(4)
    extra = torch.tensor([1.0, 2.0, 3.0, 4.0])
    sums = ReportSums(target, target, is_written=torch.tensor([True, False, True, True]), extras={"GREEN": extra})
    assert sums.corpus()["MCCS"] == 0.75
    assert sums.corpus()["GREEN"] == 2.5
    one = bootstrap([ReportSums(target[:1], target[:1])], 10)[0]
    assert set(one["MCCS"]) == {1.0}
    with pytest.raises(ValueError, match="at least one report"):
        ReportSums(preds[:0], target[:0])


def test_the_interval_of_a_macro_score_holds_the_score_where_conditions_are_rare():
    """Perfect reports in which each condition stands once: many samples have none of some of them."""
    target = torch.zeros(100, 14, dtype=torch.long)
    target[torch.arange(14), torch.arange(14)] = 1
    sums = ReportSums(target, target)
    drawn = bootstrap([sums], 200)[0]
    for name in ("CE-F1 macro-13+", "CE-F1 macro-14", "CE-F1 macro-5+"):
        assert sums.corpus()[name] == 1
        assert percentile_interval(drawn[name]) == (1, 1)
    # A condition that no report has stays 0/0 = 0, in the score as in its samples.
    target[3] = 0
    sums = ReportSums(target, target)
    assert sums.corpus()["CE-F1 macro-13+"] == pytest.approx(12 / 13)
    np.testing.assert_allclose(bootstrap([sums], 50)[0]["CE-F1 macro-13+"], 12 / 13)


def test_a_condition_that_no_reference_has_does_not_widen_the_interval_of_a_macro_score():
    """All references of Cardiomegaly are found, and Edema is hallucinated once: macro-13+ is 1/13 in every sample."""
    target = torch.zeros(40, 14, dtype=torch.long)
    target[:20, 1] = 1
    preds = target.clone()
    preds[0, 4] = 1
    hallucinating, perfect = bootstrap([ReportSums(preds, target), ReportSums(target, target)], 200)
    for name, value in (("CE-F1 macro-13+", 1 / 13), ("CE-F1 macro-14", 1 / 14), ("CE-F1 macro-5+", 1 / 5)):
        np.testing.assert_allclose(hallucinating[name], value)
        np.testing.assert_allclose(hallucinating[name], perfect[name])


def test_systems_are_averaged_over_the_conditions_of_the_same_samples():
    """Fracture, in one reference, has an F1 of 0 in both, although one of them hallucinates it elsewhere."""
    target = torch.zeros(60, 14, dtype=torch.long)
    target[:30, 1] = target[0, 11] = 1
    silent, hallucinating = target.clone(), target.clone()
    silent[0, 11] = 0
    hallucinating[0, 11], hallucinating[30:40, 11] = 0, 1
    a, b = bootstrap([ReportSums(silent, target), ReportSums(hallucinating, target)], 200)
    np.testing.assert_allclose(a["CE-F1 macro-13+"], b["CE-F1 macro-13+"])


def test_informedness_of_a_sample_without_cases_is_not_that_of_a_constant():
    """One of two studies has the finding and both are right: half of the samples have both times the same study."""
    target = torch.zeros(2, 14, dtype=torch.long)
    target[0, 1] = 1
    drawn = bootstrap([ReportSums(target, target, min_cases=1)], 100)[0]["informedness"]
    assert set(drawn.tolist()) == {1.0}


def test_blocks_of_reports_and_of_trials_change_nothing(monkeypatch):
    """Counts are held in bytes, and their sums are exact; a mean is a sum in another order."""
    better, other, target = systems(100)
    pair = [ReportSums(preds, target) for preds in (better, other)]
    assert [part.dtype for part in pair[0].parts] == [np.uint8, np.uint8, np.float64]
    whole, p = bootstrap(pair, 50, seed=3), randomization_p(*pair, 50, seed=3)
    for name, value in {"_ROWS": 7, "_BLOCK": 100, "_TRIALS": 3}.items():
        monkeypatch.setattr(f"mrg.metrics.resampling.{name}", value)
    blocks = [ReportSums(preds, target) for preds in (better, other)]
    for a, b in zip(whole, bootstrap(blocks, 50, seed=3), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-14)
    assert pair[0].corpus() == blocks[0].corpus()
    assert set(randomization_p(*blocks, 50, seed=3)) == set(p)


def test_equal_pairs_are_held_once():
    preds, _, target = systems(20)
    index = torch.randint(20, (500,), generator=torch.Generator().manual_seed(1))
    is_written = torch.arange(500) % 9 > 0
    extra = {"length": torch.arange(500)}
    sums = ReportSums(preds[index], target[index], 0.3, is_written, extra)
    assert max(len(part.table) for part in sums.parts[:3]) <= 40
    single = ReportSums(preds, target, 0.3).columns[index.numpy()]
    single[:, 2 * 3 * 14] *= is_written.numpy()  # MCCS
    np.testing.assert_array_equal(sums.columns[:, :-1], single)
    np.testing.assert_array_equal(sums.columns[:, -1], np.arange(500))
    np.testing.assert_allclose(sums.total(), sums.columns.sum(0), rtol=1e-14)
    small = ReportSums(preds[index].to(torch.uint8), target[index].to(torch.uint8), 0.3, is_written, extra)
    np.testing.assert_array_equal(small.columns, sums.columns)


def test_a_long_bootstrap_says_how_far_it_is(monkeypatch, caplog):
    better, _, target = systems(30)
    monkeypatch.setattr("mrg.metrics.resampling._BLOCK", 1)
    monkeypatch.setattr("mrg.metrics.resampling.time.monotonic", itertools.count(0, 6).__next__)
    with caplog.at_level(logging.INFO, "mrg"):
        bootstrap([ReportSums(better, target)], 128)
    assert "Resampled 30 reports 32 of 128 times." in caplog.text
