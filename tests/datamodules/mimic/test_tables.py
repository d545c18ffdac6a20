import gzip
import re

import pytest

from mrg.datamodules.errors import DataError, DataNotFoundError
from mrg.datamodules.mimic import tables as mimic_tables
from mrg.datamodules.mimic.tables import ImageList, find_table, read_table, study_time
from tests.trees import MIMIC_STUDIES, write_mimic_tree


@pytest.fixture
def files(tmp_path):
    write_mimic_tree(tmp_path, tmp_path)
    return find_table([tmp_path], "split"), find_table([tmp_path], "metadata")


def studies(listed):
    return [study for shard in range(listed.num_shards) for study in listed.studies(shard)]


def test_studies_by_patient_and_time_with_their_images_in_the_order_of_the_split_table(files):
    listed = ImageList(*files)
    found = studies(listed)
    assert listed.num_studies == len(found) == len(MIMIC_STUDIES)
    assert [study["id"] for study in found[:4]] == ["50000003", "50000001", "50000002", "50000004"]
    assert found[0] == {
        "patient": "10000032",
        "id": "50000003",
        "split": "train",
        "datetime": "21800506 094005.515",
        "dicom_ids": ["a1", "a2", "a3"],
        "positions": ["LATERAL", "AP", "PA"],
    }


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100])
def test_shards_of_any_size_hold_the_same_studies_and_whole_patients(files, monkeypatch, size):
    whole = studies(ImageList(*files))
    monkeypatch.setattr(mimic_tables, "_SHARD_STUDIES", size)
    listed = ImageList(*files)
    assert studies(listed) == whole
    patients = [{study["patient"] for study in listed.studies(shard)} for shard in range(listed.num_shards)]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 4
    assert listed.num_shards == {1: 4, 2: 3, 3: 3, 4: 3, 7: 2, 100: 1}[size]


def test_times_sort_as_texts():
    times = ["10.5", "1", "94005.515", "213014.531", "94005.6", "0", "235959.999"]
    assert sorted(times, key=lambda time: study_time("21800506", time)) == sorted(times, key=float)
    assert study_time("21800506", "94005.515") == "21800506 094005.515"
    assert study_time("", "94005.515") == ""


def test_packed_or_not_and_of_any_release(tmp_path):
    write_mimic_tree(tmp_path, tmp_path, packed=False)
    assert find_table([tmp_path / "no folder", tmp_path], "split").name == "mimic-cxr-2.0.0-split.csv"
    (tmp_path / "mimic-cxr-2.0.0-split.csv").rename(tmp_path / "mimic-cxr-2.1.0-split.csv")
    assert len(read_table(find_table([tmp_path], "split"), ["dicom_id"])) == 16
    with pytest.raises(DataNotFoundError, match=r"No table mimic-cxr-2\.0\.0-chexpert\.csv\.gz in .*init_args\.tables"):
        find_table([tmp_path], "chexpert")


def test_bad_tables_are_one_line_each(files, tmp_path):
    split, metadata = files
    content = gzip.decompress(split.read_bytes()).decode()
    metadata_content = metadata.read_bytes()

    def message(text=None, raw=None, file=split):
        file.write_bytes(gzip.compress(text.encode()) if raw is None else raw)
        with pytest.raises(DataError) as caught:
            ImageList(split, metadata)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)
        return str(caught.value)

    assert "has no column subject_id, only dicom_id, study_id, patient, split" in message(
        content.replace("subject_id", "patient")
    )
    assert "expected the splits train, validate and test, but got ['dev', 'test'" in message(
        content.replace("validate", "dev")
    )
    assert "cannot be read" in message(raw=gzip.compress(content.encode() * 500)[:-400])
    assert "cannot be read" in message(raw=b"no archive")
    assert "cannot be read" in message("")
    assert "has no rows" in message(content.splitlines()[0] + "\n")
    assert re.search(r"cannot be read .*Expected 4 columns", message(content + "one,two\n"))
    missing = "has no column dicom_id, only study_id, subject_id, split; copy it again"
    assert missing in message(content.replace("dicom_id,", "", 1))  # the rows have more fields than names
    damaged = gzip.compress(content.encode().replace(b"dicom_id", b"\xff", 1))
    assert "has no column subject_id, study_id, dicom_id, split; copy it again" in message(raw=damaged)
    split.write_bytes(gzip.compress(content.encode()))
    rows = gzip.decompress(metadata_content).decode().splitlines(keepends=True)
    assert "2 of the 16 images" in message("".join(rows[:-2]), file=metadata)


def test_a_study_in_two_splits_is_an_error(files):
    """It must not be in the split of its first image."""
    split, metadata = files
    lines = gzip.decompress(split.read_bytes()).decode().splitlines()
    column = lines[0].split(",").index("study_id")
    ids = [line.split(",")[column] for line in lines]
    last = max(place for place, name in enumerate(ids) if ids.count(name) > 1)
    other = "test" if lines[last].endswith("train") else "train"
    lines[last] = f"{lines[last].rpartition(',')[0]},{other}"
    split.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    with pytest.raises(
        DataError, match=f"Study {ids[last]} has images in two splits of the split table; copy it again"
    ):
        studies(ImageList(split, metadata))
