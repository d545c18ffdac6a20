import numpy as np
import pytest
import yaml
from PIL import Image

from mrg.datamodules.demo import World, make_study
from mrg.files import write_json, write_lines
from mrg.pages.tested_run import TestedRun

DATA = {
    "class_path": "mrg.datamodules.demo.DemoDataModule",
    "init_args": {"num_train": 2, "num_val": 1, "num_test": 4, "seed": 3},
}


def write_run(folder, studies, images=None, **config):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": s.id,
            "images": images[i] if images else [v.position for v in s.views],
            "positions": [v.position for v in s.views],
            "prediction": s.report,
            "target": s.report,
            "format": True,
        }
        for i, s in enumerate(studies)
    ]
    write_lines(folder / "predictions.jsonl", rows)
    write_json(folder / "results.json", {"margin": 0.3, "labeler": "rules"})
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": DATA, **config}))
    return rows


@pytest.fixture
def synthetic():
    return [make_study(World(), 3, "test", index, 112) for index in range(4)]


def test_synthetic_images_are_made_again(tmp_path, synthetic):
    write_run(tmp_path / "run", synthetic, model={"init_args": {"max_views": 1}})
    run = TestedRun.read(tmp_path / "run")
    found = run.studies()
    assert list(found) == [study.id for study in synthetic]
    for study in synthetic:
        for view, again in zip(study.views, found[study.id].views, strict=True):
            assert np.array_equal(view.image, again.image)
    assert run.max_views == 1


def test_studies_whose_reference_has_changed_are_left_out(tmp_path, synthetic):
    rows = write_run(tmp_path / "run", synthetic)
    rows[1]["target"] = "Another report."
    write_lines(tmp_path / "run" / "predictions.jsonl", rows)
    assert list(TestedRun.read(tmp_path / "run").studies()) == [s.id for i, s in enumerate(synthetic) if i != 1]


def test_files_are_taken_from_the_rows(tmp_path, synthetic):
    images = []
    for study in synthetic:
        paths = [tmp_path / f"{study.id}-{i}.png" for i in range(len(study.views))]
        for path, view in zip(paths, study.views, strict=True):
            Image.fromarray(view.image).save(path)
        images.append([str(path) for path in paths])
    write_run(tmp_path / "run", synthetic, images, data=None)
    found = TestedRun.read(tmp_path / "run").studies()
    assert found[synthetic[0].id].views[0].image == tmp_path / f"{synthetic[0].id}-0.png"
    assert found[synthetic[0].id].views[0].position == "frontal"


def test_without_data_there_are_no_images_and_a_warning_says_why(tmp_path, synthetic, caplog):
    data = {"class_path": "mrg.datamodules.iu.IUXRayDataModule", "init_args": {"root": str(tmp_path / "gone")}}
    write_run(tmp_path / "run", synthetic, data=data)
    assert TestedRun.read(tmp_path / "run").studies() == {}
    (line,) = caplog.messages
    assert line.startswith("No images: the data of ")
    assert "gone" in line
    assert "\n" not in line
    (tmp_path / "run" / "config.yaml").unlink()
    assert TestedRun.read(tmp_path / "run").studies() == {}


def test_a_folder_without_predictions(tmp_path):
    with pytest.raises(ValueError, match=r"holds no predictions\.jsonl: run `test` there first"):
        TestedRun.read(tmp_path)
