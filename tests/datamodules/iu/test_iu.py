import hashlib
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.errors import DataError, DataNotFoundError, ImageReadError
from mrg.datamodules.iu import IUXRayDataModule, check_variant, describe_variant
from mrg.datamodules.iu.record import DEIDENTIFIED, clean_target
from mrg.datamodules.study import Study, View, leakage_free


def read_annotation(root: Path, **settings: Any) -> dict[str, list[Study]]:
    return IUXRayDataModule(str(root), "annotation", variant="any", **settings).read()


def _entry(name: str, *images: str, report: str = "Lungs are clear.") -> dict[str, Any]:
    return {"id": name, "report": report, "image_path": [f"{name}/{image}" for image in images], "split": "train"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four synthetic studies with one to three views in the published layout, stored as .jpg but listed as .png."""
    content = {
        "train": [_entry("CXR1_IM-0001", "0.png", "1.png"), _entry("CXR2_IM-0002", "0.png", "1.png", "2.png")],
        "val": [_entry("CXR3_IM-0003", "0.png", report="No effusion.")],
        "test": [_entry("CXR4_IM-0004", "0.png", "1.png", report="LUNGS  are clear.")],
    }
    (tmp_path / "annotation.json").write_text(json.dumps(content))
    for items in content.values():
        for item in items:
            (tmp_path / "images" / item["id"]).mkdir(parents=True)
            for path in item["image_path"]:
                Image.new("L", (8, 8), 90).save(tmp_path / "images" / path.replace(".png", ".jpg"))
    return tmp_path


def _write_projections(root: Path, *rows: str, header: str = "uid,filename,projection") -> None:
    (root / "indiana_projections.csv").write_text("\n".join([header, *rows]) + "\n")


def _positions(studies: list[Study]) -> list[list[str]]:
    return [[view.position for view in study.views] for study in studies]


def test_studies_with_any_number_of_views(root: Path) -> None:
    splits = read_annotation(root)
    assert list(splits) == ["train", "val", "test"]
    assert [[len(study.views) for study in studies] for studies in splits.values()] == [[2, 3], [1], [2]]
    assert splits["train"][0].views[0] == View(root / "images" / "CXR1_IM-0001" / "0.jpg", "frontal")
    assert _positions(splits["train"]) == [["frontal", "lateral"], ["frontal", "lateral", ""]]  # by file order
    assert (splits["train"][0].id, splits["train"][0].patient) == ("CXR1_IM-0001", "CXR1")
    assert splits["test"][0].report == "LUNGS  are clear."
    assert all(view.load().size == (8, 8) for studies in splits.values() for study in studies for view in study.views)


def test_reading_opens_no_image(root: Path) -> None:
    (root / "images" / "CXR1_IM-0001" / "0.jpg").write_bytes(b"no image")
    view = read_annotation(root)["train"][0].views[0]
    with pytest.raises(ImageReadError, match=r"CXR1_IM-0001/0\.jpg is not an image"):
        view.load()


def test_names_of_file_and_folder_are_settings(root: Path) -> None:
    (root / "annotation.json").rename(root / "other.json")
    (root / "images").rename(root / "png")
    view = read_annotation(root, annotation="other.json", images="png")["val"][0].views[0]
    assert view.image == root / "png" / "CXR3_IM-0003" / "0.jpg"


def test_positions_follow_the_text_order_of_the_file_names(root: Path) -> None:
    _write_projections(
        root,
        "1,1_IM-0001-4001.dcm.png,Frontal",  # the table is not sorted
        "1,1_IM-0001-3001.dcm.png,Lateral",
        "2,2_IM-0002-2001.dcm.png,Lateral",
        "2,2_IM-0002-12012.dcm.png,Frontal",  # before 2001 as text, behind it as a number
        "3,3_IM-0003-1001.dcm.png,Oblique",  # a projection that the collection does not have
    )
    splits = read_annotation(root)
    assert _positions(splits["train"]) == [["lateral", "frontal"], ["frontal", "lateral", ""]]  # no third image listed
    assert _positions(splits["val"]) == [[""]]
    assert _positions(splits["test"]) == [["", ""]]


def test_positions_of_images_under_their_own_names(root: Path) -> None:
    content = json.loads((root / "annotation.json").read_text())
    content["val"] = [
        {"id": "CXR3_IM-0003", "report": "Clear.", "image_path": ["CXR3_IM-0003-2001.png", "CXR3_IM-0003-1001.png"]}
    ]
    (root / "annotation.json").write_text(json.dumps(content))
    for name in content["val"][0]["image_path"]:
        Image.new("L", (8, 8)).save(root / "images" / name)
    _write_projections(root, "3,3_IM-0003-1001.dcm.png,Frontal", "3,3_IM-0003-2001.dcm.png,Lateral")
    assert _positions(read_annotation(root)["val"]) == [["lateral", "frontal"]]


def test_projections_that_cannot_be_used(root: Path) -> None:
    _write_projections(root, header="uid,file,projection")
    with pytest.raises(DataError, match=r"indiana_projections\.csv has no column filename, only .*; copy it again"):
        read_annotation(root)
    (root / "indiana_projections.csv").write_bytes(b"uid,filename,projection\n1,\xff,Frontal\n")
    with pytest.raises(DataError, match=r"indiana_projections\.csv is not a CSV table .*, or remove it"):
        read_annotation(root)


def test_projections_of_other_studies(root: Path) -> None:
    _write_projections(root, "99,99_IM-0001-1001.dcm.png,Frontal")
    with pytest.raises(
        DataError,
        match=r"indiana_projections\.csv lists none of the 4 studies of .*annotation\.json \(it has CXR99, they are "
        r"CXR1_IM-0001, .*\); copy it again, or remove it to continue without view positions\.$",
    ):
        read_annotation(root)


def test_missing_images(root: Path) -> None:
    (root / "images" / "CXR1_IM-0001" / "1.jpg").unlink()
    (root / "images" / "CXR4_IM-0004" / "0.jpg").unlink()
    with pytest.raises(DataNotFoundError, match=r"^2 of the 8 .*: CXR1_IM-0001/1\.png, CXR4_IM-0004/0\.png; set `data"):
        read_annotation(root)


def test_missing_image_folder_root_and_annotation(root: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"^8 of the 8 images .* are not in .*/pictures: "):
        read_annotation(root, images="pictures")
    with pytest.raises(DataNotFoundError, match=r"/nowhere does not exist; set `data\.init_args\.root`"):
        read_annotation(root / "nowhere")
    with pytest.raises(DataNotFoundError, match=r"/other\.json does not exist; set `data\.init_args\.root`"):
        read_annotation(root, annotation="other.json")


def test_empty_reports(root: Path) -> None:
    content = json.loads((root / "annotation.json").read_text())
    content["train"][0]["report"] = " "
    (root / "annotation.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="1 studies have an empty report: CXR1_IM-0001; set"):
        read_annotation(root, empty_reports="raise")
    splits = read_annotation(root, empty_reports="drop")
    assert [study.id for study in splits["train"]] == ["CXR2_IM-0002"]


def _studies(num: int) -> list[Study]:
    return [Study(str(index), (), "") for index in range(num)]


def test_the_published_variant_is_known_by_its_counts(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": _studies(2069), "val": _studies(296), "test": _studies(590)}
    assert describe_variant(splits) == "R2Gen split (train 2069, val 296, test 590)"
    check_variant(splits, "r2gen")
    check_variant(splits, "any")
    assert not caplog.records


def test_another_variant_is_warned_of_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": _studies(3062), "val": _studies(382), "test": _studies(382)}
    assert describe_variant(splits) == "unknown variant with counts train 3062, val 382, test 382"
    with caplog.at_level(logging.WARNING):
        check_variant(splits)
    assert [record.getMessage() for record in caplog.records] == [
        "IU X-Ray is an unknown variant with counts train 3062, val 382, test 382, but the R2Gen split has train 2069, "
        "val 296, test 590: results cannot be compared with published ones."
    ]
    with pytest.raises(DataError, match=r"unknown variant .* `data\.init_args\.variant` to any"):
        check_variant(splits, "r2gen")


@pytest.fixture(scope="module")
def iu(iu_root: Path) -> dict[str, list[Study]]:
    return read_annotation(iu_root)


def test_real_counts(iu: dict[str, list[Study]], caplog: pytest.LogCaptureFixture) -> None:
    check_variant(iu, "r2gen")
    assert {split: len(studies) for split, studies in iu.items()} == {"train": 2069, "val": 296, "test": 590}
    assert Counter(len(study.views) for studies in iu.values() for study in studies) == {2: 2955}


def test_real_positions(iu: dict[str, list[Study]]) -> None:
    counts = {
        split: Counter(",".join(view.position[:1].upper() for view in study.views) for study in studies)
        for split, studies in iu.items()
    }
    assert counts["test"] == {"F,L": 526, "L,F": 54, "F,F": 7, "L,L": 3}
    assert counts["val"] == {"F,L": 262, "L,F": 26, "F,F": 1, "L,L": 7}
    assert counts["train"] == {"F,L": 1796, "L,F": 233, "F,F": 26, "L,L": 14}


def test_real_positions_are_seen_in_the_images(iu: dict[str, list[Study]]) -> None:
    """Of a frontal and a lateral view the frontal one is more like its mirror image, in whichever order they come."""
    studies = [study for studies in iu.values() for study in studies]
    for order in (["frontal", "lateral"], ["lateral", "frontal"]):
        sample = [study for study, positions in zip(studies, _positions(studies), strict=True) if positions == order][
            ::3
        ]
        sample = sample[:100]
        right = sum(
            (_mirror_correlation(study.views[0]) > _mirror_correlation(study.views[1])) == (order[0] == "frontal")
            for study in sample
        )
        assert right >= 0.85 * len(sample)


def _mirror_correlation(view: View) -> float:
    pixels = np.asarray(view.load().convert("L").resize((32, 32)), dtype=float)
    return float(np.corrcoef(pixels.ravel(), pixels[:, ::-1].ravel())[0, 1])


def test_real_leakage(iu: dict[str, list[Study]]) -> None:
    assert len(leakage_free(iu["test"], iu["train"])) == 590 - 274
    assert len(leakage_free(iu["val"], iu["train"])) == 296 - 65


def test_real_deidentification(iu: dict[str, list[Study]]) -> None:
    reports = [study.report for study in iu["train"]]
    assert sum(DEIDENTIFIED in report for report in reports) == 907
    for deidentified, num_empty in (("drop_token", 0), ("drop_sentence", 3)):
        targets = [clean_target(report, deidentified) for report in reports]  # type: ignore[arg-type]
        assert not any(DEIDENTIFIED in target for target in targets)
        assert sum(not target for target in targets) == num_empty
        assert all(
            (target == report) == (DEIDENTIFIED not in report) for target, report in zip(targets, reports, strict=True)
        )
        assert [clean_target(target, deidentified) for target in targets] == targets  # type: ignore[arg-type]


def test_real_most_frequent_report(iu: dict[str, list[Study]]) -> None:
    # The hash stands for the text, which is not ours to publish.
    (report, count), (_, second) = Counter(study.report.strip() for study in iu["train"]).most_common(2)
    assert (count, second) == (29, 25)
    assert hashlib.sha256(report.encode()).hexdigest()[:16] == "36411d43a4f06636"
