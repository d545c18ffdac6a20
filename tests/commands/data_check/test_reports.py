import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from mrg.commands.data_check.reports import count_repeats, count_reports, measure_leakage
from mrg.commands.data_check.statistics import collect_statistics, composition
from mrg.datamodules.study import Study, fold, leakage_free
from mrg.metrics import RulesLabeler
from mrg.metrics.labels import CachingLabeler
from tests.commands.data_check.studies import FLUID, LARGE, NORMAL, splits, view


@pytest.fixture
def studies():
    return splits()


@pytest.fixture
def statistics(studies):
    return collect_statistics(studies, RulesLabeler())


class OneByOne(Sequence[Study]):
    """A sequence that makes a study when it is asked for, and counts how often."""

    def __init__(self, studies):
        self.studies, self.asked = studies, [0] * len(studies)

    def __len__(self):
        return len(self.studies)

    def __getitem__(self, index):
        self.asked[index] += 1
        return dataclasses.replace(self.studies[index])


def test_fold_leaves_case_and_spacing_out_of_account_and_nothing_else():
    assert fold(" The LUNGS\n are  clear. ") == "the lungs are clear."
    assert fold("clear.") != fold("clear")


def test_composition():
    assert composition((view("frontal"), view("lateral"), view(""))) == "F,L,?"
    assert composition(()) == "none"


def test_collect(statistics):
    train = statistics["train"]
    assert list(train.num_words) == [4, 4, 4, 0]
    assert train.is_written.tolist() == [True, True, True, False]
    assert train.empty == ["d"]
    assert train.views == {"F,L": 1, "L,F": 1, "F": 1, "?": 1}
    assert train.num_views == {2: 2, 1: 2}
    assert (train.num_indications, train.num_priors) == (1, 0)
    # Patients have one number in all splits: f of test is the patient of c in train.
    assert statistics["test"].patients[0] == train.patients[2]
    assert list(statistics["test"].patients)[2] == -1
    texts = [study.report for study in splits()["train"]]
    np.testing.assert_array_equal(train.labels, RulesLabeler()(texts).numpy())


def test_a_large_split_is_read_once_and_in_batches(monkeypatch):
    monkeypatch.setattr("mrg.commands.data_check.statistics._BATCH", 2)
    lazy = {split: OneByOne(part) for split, part in splits().items()}
    found = collect_statistics(lazy, RulesLabeler())
    assert all(part.asked == [1] * len(part) for part in lazy.values())
    whole = collect_statistics(splits(), RulesLabeler())
    for split, part in whole.items():
        assert part.exact == found[split].exact
        np.testing.assert_array_equal(part.labels, found[split].labels)


def test_repeated_ids_are_found_across_splits():
    part = [Study("a", (view(),), NORMAL), Study("b", (view(),), NORMAL)]
    statistics = collect_statistics({"train": part, "test": [*part[:1], Study("c", (), NORMAL)]}, RulesLabeler())
    assert statistics["train"].repeated_ids == []
    assert statistics["test"].repeated_ids == ["a"]


def test_each_text_is_labelled_once():
    asked = []

    def labeler(texts):
        asked.extend(texts)
        return RulesLabeler()(texts)

    caching = CachingLabeler(labeler)
    texts = [FLUID, NORMAL, FLUID, ""]
    for _ in range(2):
        assert caching(texts).equal(RulesLabeler()(texts))
    assert sorted(asked) == sorted({FLUID, NORMAL, ""})
    assert caching([]).shape == (0, 14)
    assert CachingLabeler(RulesLabeler()).name == "rules"


def test_count_reports(statistics):
    train = count_reports(statistics)["train"]
    assert train["empty"] == ["d"]
    assert train["num_short"] == 0
    assert train["words"] == {
        "quantiles": {"min": 4, "5%": 4, "median": 4, "95%": 4, "max": 4},
        "histogram": {"0": 3},
    }


def test_lengths_are_binned_by_ten_words_and_quantiles_are_of_written_reports():
    reports = ["", "w w", "w " * 9, "w " * 10, "w " * 29]
    part = [Study(str(i), (view(),), report) for i, report in enumerate(reports)]
    found = count_reports(collect_statistics({"train": part, "val": []}, RulesLabeler()))
    assert found["train"]["words"]["histogram"] == {"0": 2, "10": 1, "20": 1}
    assert found["train"]["words"]["quantiles"]["median"] == 9.5
    assert found["train"]["num_short"] == 1
    assert found["val"]["words"] == {
        "quantiles": dict.fromkeys(("min", "5%", "median", "95%", "max")),
        "histogram": {},
    }


def test_count_repeats(statistics, studies):
    found = count_repeats(statistics, studies)
    assert found["within"]["train"] == {
        "num_written": 3,
        "distinct_exact": 2,
        "distinct_folded": 2,
        "sharing_exact": 2,
        "sharing_folded": 2,
    }
    assert found["most"] == [
        {"report": NORMAL, "count": 3, "train": 2, "val": 0, "test": 1},
        {"report": FLUID, "count": 2, "train": 1, "val": 0, "test": 1},
    ]


def test_measure_leakage(statistics, studies):
    rows = {(row["split"], row["source"]): row for row in measure_leakage(statistics)}
    assert list(rows) == [("val", "train"), ("test", "train"), ("test", "val")]
    assert rows["test", "train"] == {
        "split": "test",
        "source": "train",
        "num_studies": 3,
        "exact": 1,  # g, as c
        "folded": 2,  # and f, as a and b
        "free": 1,
        "abnormal": {"num_studies": 2, "exact": 1, "folded": 1},  # g and h are not normal
        "patients": 1,  # f has the patient of c
        "patient_studies": 1,
    }
    assert rows["test", "train"]["free"] == len(leakage_free(studies["test"], studies["train"]))
    assert rows["val", "train"]["folded"] == 0


def test_empty_reports_and_studies_without_a_patient_are_no_leak():
    part = [Study("a", (view(),), ""), Study("b", (view(),), LARGE)]
    other = [Study("c", (view(),), " "), Study("d", (view(),), NORMAL)]
    (row,) = measure_leakage(collect_statistics({"train": part, "val": [], "test": other}, RulesLabeler()))
    assert (row["exact"], row["folded"], row["free"]) == (0, 0, 2)
    assert row["abnormal"]["num_studies"] == 0
    assert row["patients"] is None
