"""The real files, where they are at hand, read in all three forms."""

import csv
from pathlib import Path

import pytest

from mrg.datamodules.iu import IUXRayDataModule, count_and_drop
from mrg.datamodules.iu.kaggle import read_kaggle
from mrg.datamodules.iu.record import IURecord
from mrg.datamodules.study import leakage_free
from tests.iu_collection import FORMS, comparable, data_of


@pytest.fixture(scope="module")
def real_roots(tmp_path_factory: pytest.TempPathFactory, iu_root: Path, iu_xml: list[IURecord]) -> dict[str, Path]:
    """The real files in each layout, the images as links under their published names."""
    base = tmp_path_factory.mktemp("iu")
    openi, kaggle = base / "openi", base / "kaggle"
    for root, names in (
        (openi, ("NLMCXR_reports.tgz", "annotation.json", "indiana_projections.csv")),
        (kaggle, ("indiana_reports.csv", "indiana_projections.csv", "annotation.json")),
    ):
        root.mkdir()
        for name in names:
            (root / name).symlink_to(iu_root / name)
    (openi / "NLMCXR_png").mkdir()
    (kaggle / "images" / "images_normalized").mkdir(parents=True)
    listed: dict[str, list[str]] = {}
    with (iu_root / "indiana_projections.csv").open() as file:
        for row in csv.DictReader(file):
            listed.setdefault(f"CXR{row['uid']}", []).append(row["filename"])
    names_in_xml = {record.patient: record.images for record in iu_xml}
    for folder in (iu_root / "images").iterdir():
        patient = folder.name.split("_")[0]
        for number, filename in enumerate(sorted(listed[patient])[:2]):
            end = filename.removesuffix(".dcm.png").split("_", 1)[1]
            (name,) = (name for name in names_in_xml[patient] if name.endswith(f"_{end}"))
            (openi / "NLMCXR_png" / f"{name}.png").symlink_to(folder / f"{number}.jpg")
            (kaggle / "images" / "images_normalized" / filename).symlink_to(folder / f"{number}.jpg")
    return {"annotation": iu_root, "openi": openi, "kaggle": kaggle}


@pytest.fixture(scope="module")
def real(real_roots: dict[str, Path]) -> dict[str, IUXRayDataModule]:
    return {form: data_of(real_roots[form], variant="r2gen") for form in FORMS}


def test_real_studies_are_equal_in_all_forms(real: dict[str, IUXRayDataModule]) -> None:
    for form in FORMS:
        assert real[form].describe().startswith(f"IU X-Ray, form {form}: R2Gen split (train 2069, val 296, test 590);")
    assert real["annotation"].describe().endswith("; left out: none")
    assert real["openi"].removed == {"no place in the split of annotation.json": 1000}
    assert real["kaggle"].removed == {"no place in the split of annotation.json": 896}
    studies = [[study for split in real[form].splits.values() for study in split] for form in FORMS]
    assert [len(members) for members in studies] == [2955, 2955, 2955]
    spoilt = []
    for one, two, three in zip(*studies, strict=True):
        assert comparable(one) == comparable(two)
        assert comparable(one)[:-1] == comparable(three)[:-1]
        if one.indication != three.indication:
            spoilt.append(one.patient)
        images = [[Path(view.image).resolve() for view in study.views] for study in (one, two, three)]  # type: ignore[arg-type]
        assert images[0] == images[1] == images[2]
    assert sorted(spoilt) == ["CXR1555", "CXR3477", "CXR3784"]


def test_real_studies_come_out_by_rule(
    real: dict[str, IUXRayDataModule], iu_root: Path, iu_xml: list[IURecord]
) -> None:
    listed = {study.id for studies in real["annotation"].splits.values() for study in studies}
    tables = read_kaggle(iu_root / "indiana_reports.csv", iu_root / "indiana_projections.csv")
    for records, no_findings, few in ((iu_xml, 530, 470), (tables, 514, 382)):
        kept, removed = count_and_drop({"all": records}, "findings", 2)
        assert {record.id for record in kept["all"]} == listed
        assert removed == {"no findings": no_findings, "fewer than 2 images": few}


def test_real_splits_differ_in_their_share_of_normal_studies(
    real: dict[str, IUXRayDataModule], iu_xml: list[IURecord]
) -> None:
    normal = {record.id for record in iu_xml if record.normal}
    splits = real["annotation"].splits
    shares = {name: sum(study.id in normal for study in studies) for name, studies in splits.items()}
    assert shares == {"train": 682, "val": 98, "test": 307}  # 33.0 %, 33.1 %, 52.0 %
    others = [study for study in splits["test"] if study.id not in normal]
    assert len(others) == 283
    assert len(others) - len(leakage_free(others, splits["train"])) == 31


def test_real_positions_by_file_order_are_wrong_in_one_of_eight_studies(real: dict[str, IUXRayDataModule]) -> None:
    studies = [study for split in real["annotation"].splits.values() for study in split]
    wrong = sum([view.position for view in study.views] != ["frontal", "lateral"] for study in studies)
    assert wrong == 371
    assert round(len(studies) / wrong) == 8


def test_real_impressions_and_their_tokens(real_roots: dict[str, Path], real: dict[str, IUXRayDataModule]) -> None:
    both = data_of(real_roots["kaggle"], variant="r2gen", sections="both", deidentified="drop_token")
    assert both.removed["no impression"] == 2955 - sum(map(len, both.splits.values())) == 6
    findings = {study.id: study.report for study in real["kaggle"].splits["test"]}
    for study in both.splits["test"]:
        assert study.report.startswith(findings[study.id] + " ")
    assert not any("XXXX" in study.report for study in both.splits["train"])
    assert sum("XXXX" in study.report for study in both.splits["test"]) > 100
