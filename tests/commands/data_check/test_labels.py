import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from mrg.commands.data_check.labels import (
    _difference,
    _share_and_size,
    measure_prevalence,
    measure_shift,
    score_baselines,
    wilson_interval,
)
from mrg.commands.data_check.statistics import SplitStatistics, collect_statistics
from mrg.commands.data_check.table import _baselines
from mrg.metrics import CONDITIONS, RulesLabeler
from mrg.metrics.conditions import NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems, most_frequent_report
from tests.commands.data_check.studies import NORMAL, splits

EDEMA = CONDITIONS.index("Edema")
Z = norm.ppf(0.975)


def part(num, num_found, patients=None):
    """A split of `num` written reports, the first `num_found` of them with Edema."""
    statistics = SplitStatistics()
    statistics.num_words.extend([5] * num)
    statistics.patients.extend([-1] * num if patients is None else patients)
    statistics.labels = np.zeros((num, 14), np.uint8)
    statistics.labels[:num_found, EDEMA] = POSITIVE
    return statistics


def shift(train, test):
    return measure_shift({"train": train, "test": test})["differences"]["test"]["Edema"]


def test_prevalence_counts_classes_over_written_reports():
    statistics = part(4, 1)
    statistics.labels[1:3, EDEMA] = UNCERTAIN, NEGATIVE
    statistics.num_words[3] = 0
    found = measure_prevalence({"train": statistics, "val": SplitStatistics()})
    assert found["train"]["Edema"] == {"positive": 1, "uncertain": 1, "negative": 1, "share": 2 / 3}
    assert found["train"]["Fracture"] == {"positive": 0, "uncertain": 0, "negative": 0, "share": 0}
    assert found["val"]["Edema"]["share"] is None


@pytest.mark.parametrize(("found", "num"), [(0, 10), (3, 10), (10, 10), (1, 2069), (455, 590)])
def test_wilson_interval_is_scipys(found, num):
    expected = binomtest(found, num).proportion_ci(0.95, method="wilson")
    assert wilson_interval(found / num, num, Z) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_difference_is_that_of_newcombes_example():
    # Newcombe (1998), Statistics in Medicine 17:873-890, table II (a), method 10: 56/70 - 48/80.
    row = _difference(np.array([48 / 80, 80]), np.array([56 / 70, 70]), Z)
    assert [round(row[key], 4) for key in ("difference", "low", "high")] == [0.2, 0.0524, 0.3339]


def test_shift_is_found_where_it_is_large_and_sure():
    assert not shift(part(1000, 100), part(100, 13))["is_shift"]  # 3 points, but by chance
    assert not shift(part(200_000, 20_000), part(200_000, 21_000))["is_shift"]  # sure, but half a point
    assert shift(part(200_000, 1_000), part(200_000, 2_000))["is_shift"]  # half a point, but twice as many
    row = shift(part(2000, 200), part(500, 100))
    assert row["is_shift"]
    assert row["difference"] == pytest.approx(0.1)
    assert 0 < row["low"] < 0.1 < row["high"]


def test_equal_splits_differ_by_chance_only_and_intervals_widen_with_comparisons():
    rng = np.random.default_rng(0)
    flagged = 0
    for _ in range(60):
        drawn = {split: part(300, 0) for split in ("train", "val", "test")}
        for statistics in drawn.values():
            statistics.labels[:] = rng.random((300, 14)) < 0.2
        found = measure_shift(drawn)
        assert found["num_comparisons"] == 28
        flagged += any(row["is_shift"] for rows in found["differences"].values() for row in rows.values())
    assert flagged <= 8  # 5 % of 60 are 3; 9 or more have a chance below 0.01


def test_studies_of_one_patient_count_less():
    # Each patient has ten studies with one and the same finding: ten studies tell as much as one.
    patients = np.repeat(np.arange(50), 10).tolist()
    share, size = _share_and_size(part(500, 100, patients))[:, EDEMA]
    assert share == 0.2
    assert size == pytest.approx(50)
    assert _share_and_size(part(500, 100))[1, EDEMA] == pytest.approx(500)
    # A condition nobody has, or everybody, has no spread that could tell.
    assert _share_and_size(part(500, 0, patients))[1, EDEMA] == 500
    assert shift(part(2000, 200), part(500, 90))["is_shift"]
    assert not shift(part(2000, 200), part(500, 90, patients))["is_shift"]


def test_no_train_or_nothing_else_gives_no_shift():
    for statistics in ({"train": part(5, 1)}, {"train": SplitStatistics(), "test": part(5, 1)}, {"test": part(5, 1)}):
        assert measure_shift(statistics)["differences"] == {}


def test_baselines_are_those_of_the_test_command():
    studies, labeler = splits(), RulesLabeler()
    found = score_baselines(collect_statistics(studies, labeler), studies, labeler, margin=0.3)
    train = [study.report for study in studies["train"]]
    assert found["reports"] == {"constant normal": CONSTANT_NORMAL, "most frequent report": most_frequent_report(train)}
    assert (found["reports"]["most frequent report"], found["train_count"]) == (NORMAL, 2)
    target = [study.report for study in studies["test"]]
    systems = {name: [report] * 3 for name, report in found["reports"].items()}
    best = BestConstants.of(train, labeler, 0.3)
    assert (best.num_reports, best.total) == (3, 4)  # one is empty
    assert found["scores"]["test"]["best_constant"].pop("total") == 3
    expected = evaluate_systems(systems, target, labeler, 0.3, best=best)
    assert expected["best_constant"].pop("total") == 4
    assert found["scores"]["test"] == expected
    assert list(found["scores"]) == ["val", "test"]


def test_empty_reports_are_not_scored_and_not_the_most_frequent_ones():
    studies, labeler = splits(), RulesLabeler()
    blank = [dataclasses.replace(study, id=f"{study.id}{k}", report="") for study in studies["train"] for k in range(2)]
    given = {"train": [*studies["train"], *blank], "val": studies["val"], "test": [*studies["test"], *blank]}
    found = score_baselines(collect_statistics(given, labeler), given, labeler, 0.3)
    assert (found["reports"]["most frequent report"], found["train_count"]) == (NORMAL, 2)
    assert found == score_baselines(collect_statistics(studies, labeler), studies, labeler, 0.3)
    assert found["scores"]["test"]["num_studies"] == 3


def test_the_best_constant_is_a_row_of_the_table():
    """A constant pleural effusion finds two of the three findings of test with one false one: 2 * 2 / (3 + 3)."""
    studies, labeler = splits(), RulesLabeler()
    baselines = score_baselines(collect_statistics(studies, labeler), studies, labeler, 0.3)
    table = next(table for table in _baselines(baselines) if table.key == "baselines_test")
    rows = {row[0]: row[1:] for row in table.rows}
    place = table.columns.index("CE-F1 micro-13+") - 1
    assert rows["constant normal"][place] == "0.0 [0.0, 0.0]"
    assert rows["best constant"][place].startswith("66.7 [")
    assert "best constant: for each score, the constant with the highest score on 3 training reports." in table.note
    assert "CE-F1 micro-13+: Pleural Effusion" in table.note


@pytest.mark.parametrize("order", [1, -1])
def test_of_equally_frequent_reports_it_is_that_of_the_test_command_whatever_their_order(order):
    studies = splits()
    studies["train"] = [studies["train"][2], studies["train"][0], studies["val"][0]][::order]
    reports = [study.report for study in studies["train"]]
    assert len(set(reports)) == 3
    labeler = RulesLabeler()
    found = score_baselines(collect_statistics(studies, labeler), studies, labeler, 0.5)
    assert found["reports"]["most frequent report"] == most_frequent_report(reports) == min(reports)
    assert found["train_count"] == 1


def test_without_train_only_the_constant_report_is_scored():
    studies, labeler = {**splits(), "train": []}, RulesLabeler()
    found = score_baselines(collect_statistics(studies, labeler), studies, labeler, 0.5)
    assert list(found["scores"]["val"]["systems"]) == ["constant normal"]
    assert found["train_count"] == 0
