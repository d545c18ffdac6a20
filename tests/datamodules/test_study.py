import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mrg.datamodules import study as study_module
from mrg.datamodules.loading import StudyDataset
from mrg.datamodules.mimic import MIMICDataModule
from mrg.datamodules.study import StudyTable, random_subset, to_position
from tests.trees import MIMICStudy, mimic_report, write_mimic_tree


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """40 studies of 8 patients, each but the first of a patient with a prior."""
    root = tmp_path_factory.mktemp("tree")
    studies = [
        MIMICStudy(10000000 + number // 5, 50000000 + number, "train", "21800101", str(number), ((f"a{number}", "PA"),),
                   mimic_report(indication=f"Cough {number}.", findings=f"Nodule of {number} mm. " + "Clear. " * 500))
        for number in range(40)
    ]  # fmt: skip
    write_mimic_tree(root, root, studies)
    data = MIMICDataModule(str(root), index=str(root / "index"), prior=True)
    data.setup()
    return data.splits["train"]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(study_module, "_BATCH", 7)


def number(study):
    return int(study.id) - 50000000


@pytest.mark.usefixtures("small_batches")
def test_iterating_gives_what_asking_one_by_one_gives(table):
    assert isinstance(table, StudyTable)
    assert list(table) == [table[index] for index in range(40)]
    assert [number(study) for study in table] == list(range(40))
    assert table.reports() == [study.report for study in table]
    assert [study.prior and number(study.prior) for study in table] == [n - 1 if n % 5 else None for n in range(40)]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("part", [slice(3), slice(5, 30, 4), slice(None, None, -1), slice(50, 60)])
def test_a_slice_is_a_sequence_of_its_own(table, part):
    expected = list(table)[part]
    sliced = table[part]
    assert isinstance(sliced, StudyTable)
    assert len(sliced) == len(expected)
    assert list(sliced) == expected
    assert sliced.reports() == [study.report for study in expected]
    assert [sliced[index] for index in range(len(sliced))] == expected


def test_ends(table):
    assert table[-1] == table[39]
    assert table[np.int64(3)] == table[3]
    assert number(next(reversed(table))) == 39
    with pytest.raises(IndexError):
        table[40]


def test_workers_are_sent_file_names(table):
    content = pickle.dumps(table)
    assert len(content) < 10_000 < sum(len(study.report) for study in table)
    assert list(pickle.loads(content)) == list(table)


def test_a_loader_with_workers_reads_every_study_once(table):
    loader = DataLoader(StudyDataset(table), 8, shuffle=True, num_workers=2, collate_fn=list)
    assert sorted(number(study) for batch in loader for study in batch) == list(range(40))


@pytest.mark.usefixtures("small_batches")
def test_a_drawn_part_is_a_table_with_its_priors(table):
    drawn = random_subset(table, 12)
    assert isinstance(drawn, StudyTable)
    every = {study.id: study for study in table}
    assert list(drawn) == [every[study.id] for study in drawn]
    assert len({study.id for study in drawn}) == 12
    assert any(study.prior for study in drawn)


@pytest.mark.parametrize(
    ("word", "position"),
    [
        ("Frontal", "frontal"),
        ("AP", "frontal"),
        ("postero-anterior", "frontal"),
        ("POSTERO_ANTERIOR", "frontal"),
        ("LATERAL", "lateral"),
        ("LL", "lateral"),
        ("left lateral", "lateral"),
        ("LAO", ""),
        ("UNKNOWN", ""),
        ("N/A", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_words_of_published_data_sets(word, position):
    assert to_position(word) == position
