import numpy as np
import pytest

from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.study import Study, View, all_as_test, leakage_free, random_subset, split_by_patient

VIEW = View(np.zeros((2, 2), np.uint8))


def studies(num_patients, per_patient=3):
    return [
        Study(f"s{p}-{k}", (VIEW,), "Clear.", patient=f"p{p}") for k in range(per_patient) for p in range(num_patients)
    ]


def test_a_patient_is_in_one_split_and_every_study_in_exactly_one():
    given = studies(200)
    splits = split_by_patient(given, seed=3)
    patients = {name: {s.patient for s in part} for name, part in splits.items()}
    assert not patients["train"] & patients["val"]
    assert not patients["train"] & patients["test"]
    assert not patients["val"] & patients["test"]
    assert sorted(s.id for part in splits.values() for s in part) == sorted(s.id for s in given)


def test_shares_are_near_the_fractions_and_seeds_differ():
    given = studies(2000, per_patient=1)
    splits = split_by_patient(given, fractions=(0.6, 0.1, 0.3))
    shares = [len(splits[name]) / 2000 for name in ("train", "val", "test")]
    assert shares == pytest.approx([0.6, 0.1, 0.3], abs=0.03)
    assert split_by_patient(given, seed=0) == split_by_patient(given, seed=0)
    assert split_by_patient(given, seed=0) != split_by_patient(given, seed=1)


def test_a_patient_stays_in_its_split_when_others_go():
    given = studies(100)
    whole, part = split_by_patient(given), split_by_patient(given[::2])
    ids = {name: {s.id for s in studies_of} for name, studies_of in whole.items()}
    assert all(s.id in ids[name] for name in part for s in part[name])


def test_studies_without_a_patient_are_split_one_by_one():
    given = [Study(f"s{k}", (VIEW,), "Clear.") for k in range(100)]
    assert all(split_by_patient(given).values())


def test_fractions_must_add_up():
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_patient(studies(3), fractions=(0.5, 0.5, 0.5))


def test_all_as_test():
    given = studies(3)
    assert all_as_test(given) == {"train": [], "val": [], "test": given}


def test_a_draw_is_spread_over_the_split_keeps_its_order_and_holds_the_smaller_ones():
    given = studies(590, per_patient=1)
    place = {study.id: index for index, study in enumerate(given)}
    drawn = [place[study.id] for study in random_subset(given, 48)]
    assert len(set(drawn)) == 48
    assert drawn == sorted(drawn)
    assert min(sum(start <= index < start + 118 for index in drawn) for start in range(0, 590, 118)) > 3
    assert drawn == [place[study.id] for study in random_subset(given, 48)]
    assert set(drawn) < {place[study.id] for study in random_subset(given, 49)}
    assert random_subset(given, 0) is random_subset(given, 590) is random_subset(given, 600) is given


def test_a_limit_does_not_take_the_normal_head_of_a_sorted_list():
    """R2Gen's list of IU X-Ray begins with a hundred normal studies."""

    class Sorted(ReportDataModule):
        def read(self):
            return {
                "train": [],
                "val": [],
                "test": [Study(str(k), (VIEW,), "Edema." if k > 99 else "Clear.") for k in range(590)],
            }

    data = Sorted(limit_test=48)
    assert data.describe() == "Sorted (train 0, val 0, test 48; random subset: test 48 of 590)"
    assert 30 < sum(study.report == "Edema." for study in data.splits["test"]) < 48


def test_leakage_free_folds_case_and_space_and_keeps_order() -> None:
    train = [Study("a", (), "Lungs are clear."), Study("b", (), "Heart large.")]
    same, other, point = (
        Study("c", (), " LUNGS  are\nclear. "),
        Study("d", (), "No effusion."),
        Study("e", (), "Lungs are clear"),  # the full stop counts
    )
    assert leakage_free([same, other, point], train) == [other, point]
    assert leakage_free([point, same], []) == [point, same]
    assert leakage_free([same], train) == []
