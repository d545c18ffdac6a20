import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from mrg.commands.data_check.images import check_images, inspect_image
from mrg.datamodules.study import Study, View
from tests.commands.data_check.studies import splits, view


@pytest.fixture
def files(tmp_path):
    """Ten images in five studies: two missing, one truncated, one that is text, and two pairs of equal ones."""
    rng = np.random.default_rng(0)
    for name, shape in (("a0", (20, 30)), ("a1", (300, 150)), ("b0", (20, 30)), ("c0", (20, 30))):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    shutil.copy(tmp_path / "a0.png", tmp_path / "d0.png")
    shutil.copy(tmp_path / "b0.png", tmp_path / "b1.png")
    (tmp_path / "c1.png").write_bytes((tmp_path / "a1.png").read_bytes()[:2000])
    (tmp_path / "e0.png").write_text("no image")

    def study(name, num=2):
        return Study(name, tuple(View(tmp_path / f"{name}{i}.png") for i in range(num)), "Clear.")

    return {"train": [study("a"), study("b"), study("c")], "val": [], "test": [study("d"), study("e")]}


def names(rows):
    return [(row["split"], row["study"], row["image"][-6:]) for row in rows]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_missing_and_unreadable_images_are_listed(files, num_workers):
    found = check_images(files, num_workers=num_workers)
    assert found["num_images"] == {"train": 6, "test": 4}
    assert names(found["missing"]) == [("test", "d", "d1.png"), ("test", "e", "e1.png")]
    assert names(found["unreadable"]) == [("train", "c", "c1.png"), ("test", "e", "e0.png")]
    assert "truncated" in found["unreadable"][0]["error"]
    assert "not an image" in found["unreadable"][1]["error"]
    assert found["sizes"] == {"30x20": 5, "150x300": 1}
    assert found["side"] == {"0": 5, "256": 1}
    assert found["shape"] == {"0.5": 1, "1.5": 5}
    groups = [
        (group["across_splits"], group["across_studies"], names(group["images"])) for group in found["duplicates"]
    ]
    assert groups == [
        (False, False, [("train", "b", "b0.png"), ("train", "b", "b1.png")]),
        (True, True, [("train", "a", "a0.png"), ("test", "d", "d0.png")]),
    ]


def test_unread_images_are_only_looked_for(files):
    found = check_images(files, read=False)
    assert len(found["missing"]) == 2
    assert found["unreadable"] == found["duplicates"] == []
    assert found["sizes"] == {}
    assert not found["is_read"]


def test_images_in_memory():
    found = check_images(splits())
    assert found["in_memory"] == sum(found["num_images"].values()) == 12 - 1
    assert found["missing"] == []
    assert found["sizes"] == {"8x8": 11}
    assert [len(group["images"]) for group in found["duplicates"]] == [3, 7]


def test_equal_bytes_of_another_shape_are_another_image():
    first, second = (inspect_image(view(shape=shape)) for shape in ((4, 8), (8, 4)))
    assert first.digest != second.digest


def test_a_wrong_array_and_a_missing_package_are_unreadable_images(monkeypatch):
    assert "uint8" in inspect_image(View(np.zeros((3, 3)))).error

    def load(self):
        raise ImportError("This file needs pydicom:\n pip install -e '.[dicom]' in the checkout")

    monkeypatch.setattr(View, "load", load)
    assert inspect_image(view()).error == "This file needs pydicom: pip install -e '.[dicom]' in the checkout"


def test_progress_sees_every_study(files):
    seen = []

    def progress(items, description, total):
        seen.append((description, total))
        yield from items

    assert check_images(files, progress=progress) == check_images(files)
    assert seen == [("images of train", 3), ("images of val", 0), ("images of test", 2)]


def test_a_file_that_two_studies_share_is_a_duplicate(files):
    shared = dataclasses.replace(files["train"][0], id="z")
    found = check_images({"train": [files["train"][0], shared]})
    assert [group["across_studies"] for group in found["duplicates"]] == [True, True]
