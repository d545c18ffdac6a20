import pytest
from PIL import Image

from mrg.datamodules.errors import DataNotFoundError
from mrg.datamodules.own_images import ImagesDataModule, find_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x" / "deep").mkdir(parents=True)
    for name in ("x/b.png", "x/a.JPG", "x/deep/c.png", "scan"):
        Image.new("L", (4, 4)).save(tmp_path / name, "PNG")
    (tmp_path / "x" / "notes.txt").write_text("no image")
    return tmp_path


def test_files_folders_and_patterns(folder):
    assert list(map(str, find_images(["x"]))) == ["x/a.JPG", "x/b.png"]
    assert list(map(str, find_images(["x/**/*.png", "scan"]))) == ["x/b.png", "x/deep/c.png", "scan"]
    assert list(map(str, find_images(["x/b.png", "x", "x/b.png"]))) == ["x/b.png", "x/a.JPG"]


def test_names_with_brackets_are_files_first(folder):
    Image.new("L", (4, 4)).save(folder / "a[1].png")
    assert list(map(str, find_images(["a[1].png"]))) == ["a[1].png"]


def test_what_is_not_there(folder):
    with pytest.raises(DataNotFoundError, match=r"^2 images do not exist: nope\.png, \*\.dcm; check --images"):
        find_images(["nope.png", "scan", "*.dcm"])
    (folder / "empty").mkdir()
    with pytest.raises(DataNotFoundError, match=r"^Folder empty holds no image \(\.png, .*'empty/\*\*/\*\.dcm'"):
        find_images(["empty"])


def test_studies(folder):
    data = ImagesDataModule(["x", "scan"], indication="Cough", num_workers=4)
    data.setup()
    assert [(s.id, len(s.views), s.report, s.indication) for s in data.to_predict()] == [
        ("x/a.JPG", 1, "", "Cough"),
        ("x/b.png", 1, "", "Cough"),
        ("scan", 1, "", "Cough"),
    ]
    assert data.num_workers == 0
    assert data.train_reports() == []
    one = ImagesDataModule(["x", "scan"], as_one_study=True)
    one.setup()
    assert [(study.id, len(study.views)) for study in one.to_predict()] == [("x/a.JPG, x/b.png, scan", 3)]


def test_output_is_checked_before_any_work(folder):
    for output in ("no/such/folder.jsonl", "x"):
        with pytest.raises(ValueError, match=f"{output} cannot be written"):
            ImagesDataModule(["x"], output=output)
    with pytest.raises(ValueError, match="at least one image"):
        ImagesDataModule([])
