import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mrg.datamodules.errors import DataError, DataNotFoundError
from mrg.datamodules.iu import IUXRayDataModule
from mrg.datamodules.iu.files import find_files
from tests.iu_collection import (
    COLLECTION,
    FORMS,
    comparable,
    data_of,
    ids_of,
    write_annotation,
    write_kaggle,
    write_openi,
    write_projections,
    write_r2gen,
    write_tables,
)
from tests.refusals import refused


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """The synthetic collection in each form, each with R2Gen's annotation; the first also has the XML reports."""
    for form, write in zip(FORMS, (write_r2gen, write_openi, write_kaggle), strict=True):
        write(tmp_path / form)
        write_annotation(tmp_path / form)
        write_projections(tmp_path / form)
    write_openi(tmp_path / "annotation", images="unused")
    return {form: tmp_path / form for form in FORMS}


def _reports(data: IUXRayDataModule) -> list[str]:
    return [study.report for studies in data.splits.values() for study in studies]


def _refused(error: type[Exception], root: Path, **settings: Any) -> str:
    return refused(lambda: data_of(root, **settings), error)


def test_equal_studies_from_all_forms(roots: dict[str, Path]) -> None:
    data = {form: data_of(roots[form]) for form in FORMS}
    assert ids_of(data["annotation"]) == {
        "train": ["CXR10_IM-0100", "CXR1_1_IM-0001", "CXR2_IM-0020"],
        "val": ["CXR6_IM-0060-1001"],
        "test": ["CXR7_IM-0070"],
    }
    for split in ("train", "val", "test"):
        first, second, third = ([comparable(study) for study in data[form].splits[split]] for form in FORMS)
        assert first == second
        if split == "train":  # a spreadsheet has spoilt this indication
            assert (first[0][-1], third[0][-1]) == ("+ smoker", "")
            third[0] = (*third[0][:-1], "+ smoker")
        assert first == third
    assert [view.position for view in data["openi"].splits["val"][0].views] == ["frontal", "lateral"]


def test_views_are_the_files_under_their_published_names(roots: dict[str, Path]) -> None:
    names = {
        form: [view.image.relative_to(roots[form]).as_posix() for view in data_of(roots[form]).splits["train"][1].views]  # type: ignore[union-attr]
        for form in FORMS
    }
    assert names == {
        "annotation": ["images/CXR1_1_IM-0001/0.png", "images/CXR1_1_IM-0001/1.png"],
        "openi": ["NLMCXR_png/CXR1_1_IM-0001-3001.png", "NLMCXR_png/CXR1_1_IM-0001-4001.png"],
        "kaggle": [f"images/images_normalized/1_IM-0001-{end}.dcm.png" for end in ("3001", "4001")],
    }


@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_found_and_said(roots: dict[str, Path], form: str, caplog: pytest.LogCaptureFixture) -> None:
    assert find_files(roots[form]).form == form
    data = data_of(roots[form])
    assert data.describe().startswith(f"IU X-Ray, form {form}: unknown variant with counts train 3, val 1, test 1; ")
    assert "; findings; positions from indiana_projections.csv; indications from " in data.describe()


def test_reports_of_one_form_go_with_images_of_the_other(roots: dict[str, Path]) -> None:
    write_tables(roots["openi"])
    for form in ("openi", "kaggle"):
        data = data_of(roots["openi"], form=form)
        assert [len(study.views) for study in data.splits["train"]] == [2, 2, 2]
    write_openi(roots["kaggle"], images="unused")
    data = data_of(roots["kaggle"], form="openi")
    assert str(data.splits["val"][0].views[1].image).endswith("images_normalized/6_IM-0060-2001.dcm.png")


@pytest.mark.parametrize("form", ["openi", "kaggle"])
def test_r2gens_studies_come_out_by_rule(roots: dict[str, Path], form: str) -> None:
    (roots[form] / "annotation.json").unlink()
    data = data_of(roots[form], split="test")
    assert {study.patient for study in data.splits["test"]} == {"CXR1", "CXR2", "CXR6", "CXR7", "CXR10"}
    few = 2 if form == "openi" else 1  # the table has no report without images
    assert data.removed == {"no findings": 1, "fewer than 2 images": few}
    assert (data.splits["train"], data.splits["val"]) == ([], [])
    assert f"form {form}: all as test (5); findings; " in data.describe()
    assert data.describe().endswith(f"; left out: 1 with no findings, {few} with fewer than 2 images")


def test_numbers_of_images_are_settings(roots: dict[str, Path]) -> None:
    data = data_of(roots["openi"], split="test", min_images=1, max_images=0)
    assert {study.patient: len(study.views) for study in data.splits["test"]} == {
        "CXR1": 2, "CXR2": 3, "CXR3": 1, "CXR6": 3, "CXR7": 2, "CXR10": 2
    }  # fmt: skip
    by_patient = {study.patient: study for study in data.splits["test"]}
    # The image that the table does not list comes last, without a position.
    assert [view.position for view in by_patient["CXR6"].views] == ["frontal", "lateral", ""]
    assert str(by_patient["CXR6"].views[2].image).endswith("CXR6_IM-0060-1001-0002.png")
    one = data_of(roots["openi"], max_images=1)
    assert {len(study.views) for studies in one.splits.values() for study in studies} == {1}
    assert _refused(DataError, roots["annotation"], min_images=3) == (
        f"No study of split 'train', 'val', 'test' in {roots['annotation'] / 'annotation.json'} is left: 5 with fewer "
        "than 3 images; change `data.init_args.sections` or `data.init_args.min_images`, or set `data.init_args.root` "
        "to other data."
    )


def test_positions_by_file_order_are_said(roots: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    (roots["openi"] / "indiana_projections.csv").unlink()
    with caplog.at_level(logging.WARNING):
        data = data_of(roots["openi"], split="test", max_images=0)
    assert [record.getMessage().split("; ")[1][:50] for record in caplog.records if "projections" in record.msg] == [
        "positions by file order (first view frontal, secon"
    ]
    positions = {study.patient: [view.position for view in study.views] for study in data.splits["test"]}
    assert positions["CXR2"] == ["frontal", "lateral", ""]
    assert positions["CXR1"] == ["frontal", "lateral"]  # which is wrong, and said to be possible
    assert "positions by file order (first view frontal, second lateral: wrong in one of eight" in data.describe()


@pytest.mark.parametrize("form", FORMS)
def test_sections(roots: dict[str, Path], form: str) -> None:
    root = roots[form]
    reports = {section: data_of(root, split="test", sections=section) for section in ("findings", "impression", "both")}
    assert "Small effusion." in _reports(reports["findings"])
    assert set(_reports(reports["impression"])) == {"No acute disease."}
    assert "Small effusion. No acute disease." in _reports(reports["both"])
    assert [study.patient for study in reports["findings"].splits["test"]].count("CXR7") == 1
    assert all(study.patient != "CXR7" for study in reports["both"].splits["test"])
    assert reports["both"].removed["no impression"] == 1


def test_the_impression_needs_the_reports(roots: dict[str, Path]) -> None:
    (roots["annotation"] / "NLMCXR_reports.tgz").unlink()
    assert _refused(DataNotFoundError, roots["annotation"], sections="impression") == (
        f"File {roots['annotation'] / 'annotation.json'} holds findings only; to read impressions, add "
        "NLMCXR_reports.tgz or indiana_reports.csv to its folder, or set `data.init_args.sections` to findings."
    )
    assert {study.indication for study in data_of(roots["annotation"]).splits["train"]} == {""}
    write_tables(roots["annotation"])
    (roots["annotation"] / "indiana_projections.csv").unlink()  # the reports alone are enough
    assert set(_reports(data_of(roots["annotation"], split="test", sections="impression"))) == {"No acute disease."}


def test_a_section_that_empties_a_split_is_said(roots: dict[str, Path]) -> None:
    message = _refused(DataError, roots["openi"], sections="both")
    assert message.startswith(f"No study of split 'test' in {roots['openi'] / 'NLMCXR_reports.tgz'} is left: 3 with ")
    assert "3 with no place in the split of annotation.json, 1 with no impression; change" in message


def test_indications(roots: dict[str, Path]) -> None:
    indications = {study.patient: study.indication for study in data_of(roots["openi"], split="test").splits["test"]}
    assert indications == {
        "CXR1": "Cough < 2 weeks & fever", "CXR2": "Cough.", "CXR6": "Cough.", "CXR7": "", "CXR10": "+ smoker"
    }  # fmt: skip


def test_targets_are_cleaned_by_section_in_training_alone(tmp_path: Path) -> None:
    reports = [
        dataclasses.replace(report, findings="Old XXXX. Clear lungs", impression="XXXX is stable. No change.")
        for report in COLLECTION
    ]
    write_openi(tmp_path, reports)
    write_annotation(tmp_path, reports)
    data = data_of(tmp_path, sections="both", deidentified="drop_sentence")
    assert {study.report for study in data.splits["train"]} == {"Clear lungs No change."}
    raw = "Old XXXX. Clear lungs XXXX is stable. No change."
    assert {study.report for study in (*data.splits["val"], *data.splits["test"])} == {raw}
    reports = [dataclasses.replace(report, impression="XXXX.") for report in reports]
    write_openi(tmp_path, reports)
    data = data_of(tmp_path, sections="both", deidentified="drop_token")
    assert {study.report for study in data.splits["train"]} == {"Old. Clear lungs XXXX."}


@pytest.mark.parametrize("form", FORMS)
def test_split_by_patient_is_the_same_for_all_forms(roots: dict[str, Path], form: str) -> None:
    settings = {"split": "patient", "split_fractions": (0.4, 0.3, 0.3), "split_seed": 0}
    data = data_of(roots[form], **settings)
    ids = ids_of(data)
    assert {name: set(members) for name, members in ids.items()} == {
        name: set(members) for name, members in ids_of(data_of(roots["openi"], **settings)).items()
    }
    assert sum(map(len, ids.values())) == 5
    assert f"form {form}: by patient, seed 0 (train {len(ids['train'])}, val " in data.describe()
    assert "Split 'val' has no study: 5 studies are too few for data.init_args.split_fractions [0.999, 0.001, 0" in (
        _refused(DataError, roots[form], split="patient", split_fractions=(0.999, 0.001, 0.0))
    )


def test_r2gens_split_needs_its_list(roots: dict[str, Path]) -> None:
    (roots["openi"] / "annotation.json").unlink()
    assert _refused(DataNotFoundError, roots["openi"]) == (
        f"File {roots['openi'] / 'annotation.json'} does not exist, but R2Gen's split is listed only there; copy it "
        "there, or set `data.init_args.split` to patient or test."
    )


@pytest.mark.parametrize("form", FORMS)
def test_ids_that_match_nothing(roots: dict[str, Path], form: str, caplog: pytest.LogCaptureFixture) -> None:
    file = roots[form] / "annotation.json"
    content = json.loads(file.read_text())
    content["test"][0]["id"] = "s50414267"
    file.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        if form == "annotation":
            assert data_of(roots[form]).splits["test"][0].indication == ""
        else:
            assert "No study of split 'test'" in _refused(DataError, roots[form])
    assert "1 of the 5 studies are not in" in caplog.text
    for items in content.values():
        for item in items:
            item["id"] = f"s{item['id']}"
    file.write_text(json.dumps(content))
    message = _refused(DataError, roots[form])
    assert f"File {file}: 5 of the 5 studies are not in {roots[form]}/" in message
    assert "expected ids such as CXR12_IM-0001; copy both files again, or remove the one that belongs to" in message


def test_an_annotation_with_other_reports_is_said(roots: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    file = roots["annotation"] / "annotation.json"
    file.write_text(file.read_text().replace("Small effusion.", "Small effusion. No acute disease."))
    with caplog.at_level(logging.WARNING):
        data = data_of(roots["annotation"])
    assert data.splits["val"][0].report == "Small effusion. No acute disease."  # as the annotation has it
    assert "the reports of 1 of 5 studies are not the findings of" in caplog.text
    both = data_of(roots["annotation"], split="test", sections="both")
    assert "Small effusion. No acute disease." in _reports(both)  # not the impression twice


@pytest.mark.parametrize("form", FORMS)
def test_the_variant_is_insisted_on(roots: dict[str, Path], form: str) -> None:
    message = _refused(DataError, roots[form], variant="r2gen")
    assert "unknown variant with counts train 3, val 1, test 1, but the R2Gen split has train 2069" in message


def test_empty_reports_of_an_annotation(roots: dict[str, Path]) -> None:
    file = roots["annotation"] / "annotation.json"
    content = json.loads(file.read_text())
    content["train"][0]["report"] = " "
    file.write_text(json.dumps(content))
    refused = _refused(DataError, roots["annotation"], empty_reports="raise")
    assert "1 studies have an empty report: CXR10_IM-0100; set" in refused
    data = data_of(roots["annotation"])
    assert data.removed == {"no findings": 1}
    assert data.describe().startswith(
        "IU X-Ray, form annotation: unknown variant with counts train 3, val 1, test 1, of which train 2, "
    )


@pytest.mark.parametrize("word", [None, "nan", "-", float("nan")])
def test_a_missing_reference_of_an_annotation_is_excluded_and_counted(roots: dict[str, Path], word: Any) -> None:
    file = roots["annotation"] / "annotation.json"
    content = json.loads(file.read_text())
    content["train"][0]["report"] = word
    file.write_text(json.dumps(content))
    data = data_of(roots["annotation"])
    assert (len(data.splits["train"]), data.removed) == (2, {"no findings": 1})
    assert "left out: 1 with no findings" in data.describe()


def test_test_subset_and_limits(roots: dict[str, Path]) -> None:
    file = roots["annotation"] / "annotation.json"
    content = json.loads(file.read_text())
    extra = {**content["test"][0], "id": "CXR3_IM-0030", "report": "Fracture."}
    content["test"].append(extra)
    file.write_text(json.dumps(content))
    data = data_of(roots["annotation"], test_subset="leakage_free", limit_train=1)
    assert ids_of(data)["test"] == ["CXR3_IM-0030"]
    assert data.removed == {"report that occurs in train": 1}
    assert data.describe().endswith("; left out: 1 with report that occurs in train; random subset: train 1 of 3")


def test_missing_images_are_named_with_their_source(roots: dict[str, Path]) -> None:
    (roots["openi"] / "NLMCXR_png" / "CXR1_1_IM-0001-3001.png").unlink()
    assert _refused(DataNotFoundError, roots["openi"]) == (
        f"1 of the 10 images listed in {roots['openi'] / 'NLMCXR_reports.tgz'} are not in "
        f"{roots['openi'] / 'NLMCXR_png'}: CXR1_1_IM-0001-3001.png; set `data.init_args.root` to the folder that holds "
        "NLMCXR_png/, or complete the images from https://openi.nlm.nih.gov/faq#collection."
    )
    (roots["kaggle"] / "images" / "images_normalized" / "1_IM-0001-3001.dcm.png").unlink()
    message = _refused(DataNotFoundError, roots["kaggle"])
    assert f"are not in {roots['kaggle']}/images/images_normalized: 1_IM-0001-3001.dcm.png; set" in message
    assert message.endswith(
        "complete the images from https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university."
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_check_keeps_missing_images_and_texts_as_written(roots: dict[str, Path], form: str) -> None:
    for file in roots[form].rglob("*2_IM*"):
        if file.is_file():
            file.unlink()
    for file in roots[form].glob("images/CXR2_IM-0020/*"):
        file.unlink()
    _refused(DataNotFoundError, roots[form])
    data = IUXRayDataModule(str(roots[form]), variant="any", deidentified="drop_token")
    data.checking = True
    data.setup()
    study = data.splits["train"][2]
    assert study.report == "Heart large. XXXX."
    assert [view.image.exists() for view in study.views] == [False, False]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "xml"}, "argument `form` to be one of 'auto', 'annotation', 'openi', 'kaggle', but got 'xml'"),
        ({"sections": "all"}, "argument `sections` to be one of 'findings', 'impression', 'both', but got 'all'"),
        ({"split": "r2gen"}, "argument `split` to be one of 'annotation', 'patient', 'test', but got 'r2gen'"),
        ({"variant": "paper"}, "argument `variant` to be one of 'r2gen', 'any', but got 'paper'"),
        ({"empty_reports": "no"}, "argument `empty_reports` to be one of 'drop', 'raise', but got 'no'"),
        ({"min_images": 0}, "data.init_args.min_images to be at least 1, but got 0"),
        ({"max_images": -1}, "data.init_args.max_images to be at least 0, but got -1"),
        ({"deidentified": "x"}, "argument `deidentified` to be one of 'keep', 'drop_token', 'drop_sentence', but got"),
    ],
)
def test_settings_that_do_not_exist(roots: dict[str, Path], settings: dict[str, Any], message: str) -> None:
    assert message in _refused(ValueError, roots["openi"], **settings)


def test_nothing_there(tmp_path: Path) -> None:
    assert "nowhere does not exist; set `data.init_args.root` to the folder that holds annotation.json and" in _refused(
        DataNotFoundError, tmp_path / "nowhere"
    )
    assert "annotation.json does not exist; set `data.init_args.root`" in _refused(DataNotFoundError, tmp_path)
    assert "holds no NLMCXR_reports.tgz, nor a folder NLMCXR_reports or ecgen-radiology; set" in _refused(
        DataNotFoundError, tmp_path, form="openi"
    )
    assert "holds no indiana_reports.csv; set" in _refused(DataNotFoundError, tmp_path, form="kaggle")
    assert "x.tgz does not exist; set `data.init_args.reports` to a name in" in _refused(
        DataNotFoundError, tmp_path, reports="x.tgz"
    )


def test_other_names_are_settings(roots: dict[str, Path]) -> None:
    root = roots["openi"]
    (root / "NLMCXR_reports.tgz").rename(root / "reports.tgz")
    (root / "NLMCXR_png").rename(root / "pictures")
    (root / "annotation.json").rename(root / "r2gen.json")
    data = data_of(root, reports="reports.tgz", images="pictures", annotation="r2gen.json", form="openi")
    assert len(data.splits["train"]) == 3
