"""A folder with the images of the small table."""

import datasets
import pytest
from PIL import Image


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "images").mkdir()
    for number, name in enumerate("abc"):
        Image.new("L", (8, 8), 50 * (number + 1)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path
