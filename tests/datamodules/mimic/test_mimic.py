import gzip
import json
import logging

import pytest

from mrg.datamodules import mimic
from mrg.datamodules.errors import DataError, DataNotFoundError
from mrg.datamodules.mimic import MIMICDataModule
from mrg.datamodules.mimic.sections import parse_sections
from mrg.datamodules.study import View
from mrg.metrics.conditions import CLASSES, CONDITIONS
from tests.trees import MIMIC_STUDIES, MIMICStudy, mimic_report, write_mimic_tree


@pytest.fixture
def roots(tmp_path):
    reports, images = tmp_path / "mimic-cxr", tmp_path / "mimic-cxr-jpg"
    write_mimic_tree(reports, images)
    return {"report_root": str(reports), "image_root": str(images), "index": str(tmp_path / "index")}


def read(roots, **settings):
    data = MIMICDataModule(**{**roots, **settings})
    data.setup()
    return data


def ids(data, split="train"):
    return [study.id for study in data.splits[split]]


def names(study):
    return [view.image.stem for view in study.views]


def test_the_official_split_with_the_usual_filters(roots):
    # The only test study with findings; the other has them in one section with the impression.
    data = read(roots)
    assert ids(data) == ["50000003", "50000001", "50000007"]
    assert (ids(data, "val"), ids(data, "test")) == (["50000008"], ["50000010"])
    assert data.removed == {
        "no findings (impression alone)": 1,
        "no view in PA, AP": 1,
        "fewer than 3 words": 1,
        "no findings (last paragraphs)": 1,
        "no findings (joint section)": 1,
    }
    assert sum(data.removed.values()) + sum(map(len, data.splits.values())) == len(MIMIC_STUDIES)
    first = data.splits["train"][0]
    assert (first.report, first.indication, first.patient) == ("The heart is enlarged.", "Cough.", "10000032")
    assert first.views == tuple(
        View(data.image_root / "files/p10/p10000032/s50000003" / f"{name}.jpg", "frontal") for name in ("a3", "a2")
    )
    assert data.splits["train"][1].indication == "Fever."
    assert all(view.load().size == (80, 96) for part in data.splits.values() for s in part for view in s.views)
    assert data.train_reports() == [study.report for study in data.splits["train"]]


def test_every_report_has_a_source_that_is_counted(roots):
    data = read(roots)
    assert data.sections_found == {
        "findings and impression": 6,
        "findings alone": 1,
        "impression alone": 1,
        "joint section": 1,
        "last paragraphs": 1,
    }


def test_reports_of_which_only_the_last_section_is_used_are_counted(roots, tmp_path, caplog):
    file = next((tmp_path / "mimic-cxr").rglob("s50000006.txt"))
    file.write_text(" LUNGS: The lungs are clear.\n HEART: The heart is enlarged.\n")
    data = read(roots, headerless="use")
    assert data.splits["train"][2].report == "HEART: The heart is enlarged."
    assert data.sections_found["several unknown headers"] == 1
    assert "1 reports have neither findings nor impression, but several sections under other headers" in caplog.text
    assert "; only the last section of 1 reports under unknown headers; left out: " in data.describe()
    caplog.clear()
    assert "unknown headers" not in read(roots).describe() + caplog.text


def test_describe_names_the_protocol_and_what_deviates(roots, monkeypatch):
    text = read(roots).describe()
    assert text.startswith(
        "MIMIC-CXR, official split, findings, views PA or AP, at least 3 words: train 3, val 1, test 1; left out: no "
    )
    assert "no findings (joint section) 1" in text
    assert text.endswith(
        "lists train 7, val 1, test 2, not the published train 222,758, val 1,808, test 3,269: results cannot be "
        "compared with published ones"
    )
    monkeypatch.setattr(mimic, "OFFICIAL_COUNTS", {"train": 7, "val": 1, "test": 2})
    text = read(roots, laterals=True, sections="both", headerless="use", prior=True, limit_train=2).describe()
    assert text.startswith(
        "MIMIC-CXR, official split, findings and impression, views PA or AP and laterals, at least 3 words, reports "
        "without headers unchanged, with prior studies: train 2, val 1, test 2; random subset: train 2 of 4; left out: "
    )
    assert "published" not in text


@pytest.mark.parametrize(
    ("settings", "train", "test"),
    [
        ({"sections": "impression", "min_words": 2}, [3, 1, 2, 7], [9, 10]),
        ({"sections": "both"}, [3, 1, 7], [9, 10]),
        ({"min_words": 2}, [3, 1, 5, 7], [10]),
        ({"headerless": "use"}, [3, 1, 6, 7], [10]),
        ({"positions": ["lateral", "AP", "PA"]}, [3, 1, 4, 7], [10]),
    ],
)
def test_filters(roots, settings, train, test):
    data = read(roots, **settings)
    assert [int(name) - 50000000 for name in ids(data)] == train
    assert [int(name) - 50000000 for name in ids(data, "test")] == test


def test_a_split_that_filters_empty_says_which_took_how_many(roots):
    with pytest.raises(DataError) as caught:
        read(roots, min_words=5)
    assert str(caught.value) == (
        "No study of split 'val' is left of 1: 'fewer than 5 words' removed 1; change these filters in data.init_args."
    )
    with pytest.raises(DataError, match=r"No study of split 'train' is left of 7: 'no view in LPO' removed 7;"):
        read(roots, positions=["LPO"])


def test_a_split_that_the_tables_do_not_have_is_empty(tmp_path):
    write_mimic_tree(tmp_path, tmp_path, MIMIC_STUDIES[:3])
    data = read({"image_root": str(tmp_path), "index": str(tmp_path / "index")})
    assert [len(studies) for studies in data.splits.values()] == [2, 0, 0]


def test_sections_make_the_report(roots):
    assert read(roots, sections="both").splits["train"][0].report == "The heart is enlarged. Mild cardiomegaly."
    assert read(roots, sections="both").splits["test"][0].report == "The lungs are clear."
    assert read(roots, sections="impression", min_words=2).splits["train"][1].report == "No change."
    assert read(roots, headerless="use").splits["train"][2].report == "The lungs are clear."


def test_views_in_the_wanted_order_with_laterals_in_turn(roots):
    assert names(read(roots, positions=["AP", "PA"]).splits["train"][0]) == ["a2", "a3"]
    study = read(roots, laterals=True).splits["train"][0]
    assert names(study) == ["a3", "a1", "a2"]
    assert [view.position for view in study.views] == ["frontal", "lateral", "frontal"]
    assert names(read(roots, laterals=True).splits["train"][2]) == ["g1", "g2"]


def test_the_prior_is_the_latest_earlier_study_with_a_view_even_where_it_is_filtered_out(roots):
    train = read(roots, prior=True).splits["train"]
    assert [study.prior and study.prior.id for study in train] == [None, "50000003", "50000006"]
    assert train[1].prior.report == "The heart is enlarged."
    assert train[1].prior.prior is None
    assert train[2].prior.report == ""  # it has no findings, but images
    assert [study.prior for study in train] == [study.prior for study in list(train)]
    assert read(roots).splits["train"][1].prior is None
    # The study of 2180-07-01 has an impression alone, that of 2180-08-01 only a lateral view.
    later = read(roots, prior=True, sections="impression", min_words=2).splits["train"]
    assert [study.prior and study.prior.id for study in later] == [None, "50000003", "50000001", "50000006"]
    test = read(roots, prior=True, laterals=True).splits["test"][0]
    assert (test.prior.id, names(test.prior)) == ("50000009", ["i1", "i2"])


def test_studies_of_one_moment_or_of_no_known_time_are_no_priors(tmp_path):
    report = mimic_report(findings="The lungs are clear.")
    same = [MIMICStudy(10000032, 50 + n, "train", "21800506", "94005.5", ((f"a{n}", "PA"),), report) for n in range(2)]
    none = [MIMICStudy(10000033, 60 + n, "train", "", "", ((f"b{n}", "PA"),), report) for n in range(2)]
    write_mimic_tree(tmp_path, tmp_path, same + none)
    studies = read({"image_root": str(tmp_path), "index": str(tmp_path / "index"), "prior": True}).splits["train"]
    assert [study.prior for study in studies] == [None] * 4


def test_missing_files_are_counted_named_and_by_option_skipped(roots, tmp_path, caplog):
    jpg, txt = tmp_path / "mimic-cxr-jpg/files", tmp_path / "mimic-cxr/files"
    for image in ("p10/p10000032/s50000003/a1.jpg", "p10/p10000032/s50000003/a2.jpg", "p11/p11000015/s50000007/g1.jpg"):
        (jpg / image).unlink()
    (jpg / "p11/p11000015/s50000007/g2.jpg").unlink()
    (txt / "p10/p10000032/s50000001.txt").unlink()
    with pytest.raises(DataNotFoundError) as caught:
        read(roots)
    assert "\n" not in str(caught.value)
    # a1 is a lateral view, which is not asked for.
    assert "MIMIC-CXR lacks 3 image files and 1 report file in " in str(caught.value)
    assert "p10/p10000032/s50000003/a2.jpg, p10/p10000032/s50000001.txt, p11/" in str(caught.value)
    assert "set `data.init_args.missing` to skip" in str(caught.value)
    with pytest.raises(DataNotFoundError, match="4 image files and 1 report file"):
        read(roots, laterals=True)
    with caplog.at_level(logging.WARNING):
        data = read(roots, missing="skip")
    assert "leaving out 3 image files and 1 report file that do not exist: p10/" in caplog.text
    assert ids(data) == ["50000003"]
    assert names(data.splits["train"][0]) == ["a3"]
    assert (data.removed["report file missing"], data.removed["image files missing"]) == (1, 1)


def test_a_check_keeps_studies_whose_images_are_missing(roots, tmp_path):
    (tmp_path / "mimic-cxr-jpg/files/p11/p11000015/s50000007/g1.jpg").unlink()
    (tmp_path / "mimic-cxr-jpg/files/p11/p11000015/s50000007/g2.jpg").unlink()
    (tmp_path / "mimic-cxr/files/p10/p10000032/s50000001.txt").unlink()
    data = MIMICDataModule(**roots)
    data.checking = True
    data.setup()
    assert ids(data) == ["50000003", "50000007"]
    assert names(data.splits["train"][1]) == ["g1", "g2"]
    assert data.removed["report file missing"] == 1


def test_files_that_arrive_later_are_found(roots, tmp_path, caplog):
    image = tmp_path / "mimic-cxr-jpg/files/p10/p10000032/s50000003/a2.jpg"
    report = tmp_path / "mimic-cxr/files/p10/p10000032/s50000001.txt"
    kept = image.read_bytes(), report.read_bytes()
    image.unlink()
    report.unlink()
    assert len(read(roots, missing="skip").splits["train"]) == 2
    image.with_suffix(".png").write_bytes(kept[0])
    assert names(read(roots, missing="skip").splits["train"][0]) == ["a3", "a2"]
    report.write_bytes(kept[1])
    assert len(read(roots).splits["train"]) == 3
    with caplog.at_level(logging.INFO, "mrg"):
        read(roots)
    assert caplog.messages[-1:] == [f"MIMIC-CXR: index of 10 rows in {tmp_path / 'index'}."]


def test_a_changed_table_rebuilds_the_index_and_is_logged_but_a_filter_does_not(roots, tmp_path, caplog):
    read(roots)
    with caplog.at_level(logging.INFO, "mrg"):
        read(roots, sections="impression", min_words=2, laterals=True, prior=True)
    assert caplog.messages == [f"MIMIC-CXR: index of 10 rows in {tmp_path / 'index'}."]
    file = tmp_path / "mimic-cxr-jpg/mimic-cxr-2.0.0-split.csv.gz"
    rows = gzip.decompress(file.read_bytes()).decode().splitlines(keepends=True)
    file.write_bytes(gzip.compress("".join(rows[:-2]).encode()))
    with caplog.at_level(logging.INFO, "mrg"), pytest.raises(DataError, match="No study of split 'test' is left"):
        read(roots)
    assert f"rebuilding the index in {tmp_path / 'index'}, which was made from another split table." in caplog.text
    assert "index of 9 rows" in caplog.text


def test_roots_may_be_one_or_the_inner_folders_and_tables_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "home")
    write_mimic_tree(tmp_path / "all", tmp_path / "all")
    one = read({"image_root": str(tmp_path / "all")})
    (tmp_path / "tables").mkdir()
    inner = str(tmp_path / "all" / "files")
    assert ids(read({"image_root": inner, "report_root": inner})) == ids(one)
    for file in (tmp_path / "all").glob("*.csv.gz"):
        file.rename(tmp_path / "tables" / file.name)
    assert ids(read({"image_root": inner, "report_root": inner, "tables": str(tmp_path / "tables")})) == ids(one)
    # All three are one data set, so they share one index in the user's cache.
    assert [path.name[:6] for path in (tmp_path / "home/.cache/mrg").iterdir()] == ["mimic-"]


def test_windows_text_is_read_and_counted(roots, tmp_path):
    file = tmp_path / "mimic-cxr/files/p10/p10000032/s50000003.txt"
    file.write_bytes(mimic_report(findings="A 5 µm filter is in place.").replace("\n", "\r\n").encode("cp1252"))
    data = read(roots)
    assert data.splits["train"][0].report == "A 5 µm filter is in place."
    assert data.sections_found["not UTF-8"] == 1


def test_bad_settings_and_folders_are_one_line_each(roots, tmp_path):
    for settings, message in (
        ({"sections": "all"}, "argument `sections` to be one of 'findings', 'impression', 'both', but got 'all'"),
        ({"missing": "ignore"}, "argument `missing` to be one of 'raise', 'skip'"),
        ({"headerless": True}, "argument `headerless` to be one of 'drop', 'use', but got True"),
        ({"min_words": 0}, r"data\.init_args\.min_words to be at least 1"),
        ({"positions": []}, r"data\.init_args\.positions to be a list such as \[PA, AP\]"),
        (
            {"image_root": str(tmp_path / "x")},
            r"x does not exist; set `data\.init_args\.image_root` .*mimic-cxr-jpg/\)",
        ),
        ({"report_root": str(tmp_path)}, r"holds no files/p10 to files/p19; set `data\.init_args\.report_root`"),
        ({"tables": str(tmp_path)}, r"No table mimic-cxr-2\.0\.0-split\.csv\.gz in .*`data\.init_args\.tables`"),
        ({"annotation": "a.json", "sections": "both"}, r"remove sections, or remove annotation"),
    ):
        with pytest.raises((ValueError, DataNotFoundError), match=message) as caught:
            read(roots, **settings)
        assert "\n" not in str(caught.value)
    (tmp_path / "mimic-cxr-reports.zip").write_bytes(b"")
    with pytest.raises(DataNotFoundError, match=r"holds mimic-cxr-reports\.zip, which must be unpacked first"):
        read(roots, report_root=str(tmp_path))


def test_published_labels_in_the_order_of_the_split(roots, tmp_path):
    with pytest.raises(DataNotFoundError, match="chexpert"):
        read(roots).chexpert_labels("train")
    given = {"Cardiomegaly": "1.0", "Edema": "0.0", "Pneumonia": "-1.0"}
    values = ",".join(given.get(name, "") for name in sorted(CONDITIONS))
    rows = ["subject_id,study_id," + ",".join(sorted(CONDITIONS)), f"10000032,50000003,{values}"]
    file = tmp_path / "mimic-cxr-jpg/mimic-cxr-2.0.0-chexpert.csv.gz"
    file.write_bytes(gzip.compress("\n".join(rows).encode()))
    labels = read(roots).chexpert_labels("train")
    assert labels.shape == (3, 14)
    found = {name: CLASSES[label] for name, label in zip(CONDITIONS, labels[0].tolist(), strict=True) if label}
    assert found == {"Cardiomegaly": "positive", "Edema": "negative", "Pneumonia": "uncertain"}
    assert labels[1:].sum() == 0
    file.write_bytes(gzip.compress("\n".join(rows).replace("1.0", "2.0").encode()))
    with pytest.raises(DataError, match=r"column Cardiomegaly: expected 1, 0, -1 or nothing, but got '2\.0'"):
        read(roots).chexpert_labels("train")


@pytest.fixture
def annotated(tmp_path, roots):
    """R2Gen's annotation over the same images: one image per item, ids of studies and patients as numbers."""
    content = {"train": [], "val": [], "test": []}
    for study in MIMIC_STUDIES:
        split = "val" if study.split == "validate" else study.split
        for dicom, _ in study.images:
            path = f"p{study.patient // 1_000_000}/p{study.patient}/s{study.study}/{dicom}.jpg"
            item = {"id": dicom, "study_id": study.study, "subject_id": study.patient, "report": " Clear\n lungs. "}
            content[split].append({**item, "image_path": [path], "split": split})
    (tmp_path / "annotation.json").write_text(json.dumps(content))
    del roots["report_root"]
    return {**roots, "annotation": str(tmp_path / "annotation.json")}


def test_the_annotation_is_taken_as_it_is(annotated, tmp_path, monkeypatch):
    data = read(annotated)
    assert {name: len(studies) for name, studies in data.splits.items()} == {"train": 11, "val": 1, "test": 4}
    study = data.splits["train"][0]
    assert (study.id, study.patient, study.report) == ("a1", "10000032", " Clear\n lungs. ")
    assert study.views == (View(tmp_path / "mimic-cxr-jpg/files/p10/p10000032/s50000003/a1.jpg", ""),)
    assert study.views[0].load().size == (80, 96)
    assert data.describe() == (
        "MIMIC-CXR, R2Gen's annotation, one image per item: train 11, val 1, test 4; lists train 11, val 1, test 4, "
        "not the published train 270,790, val 2,130, test 3,858: results cannot be compared with published ones"
    )
    monkeypatch.setattr(mimic, "R2GEN_COUNTS", {"train": 11, "val": 1, "test": 4})
    assert data.describe() == "MIMIC-CXR, R2Gen's annotation, one image per item: train 11, val 1, test 4"


def test_errors_of_the_annotation_name_its_setting(annotated, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"does not exist; set `data\.init_args\.annotation` to the folder"):
        read(annotated, annotation=str(tmp_path / "none"))
    (tmp_path / "annotation.json").write_text('{"train": []')
    with pytest.raises(DataError, match=r"not valid JSON .*set `data\.init_args\.annotation`"):
        read(annotated, annotation=str(tmp_path))
    with pytest.raises(ValueError, match="has findings only and no times: remove prior"):
        read(annotated, prior=True)


def test_missing_images_of_the_annotation(annotated, tmp_path):
    (tmp_path / "mimic-cxr-jpg/files/p10/p10000032/s50000003/a1.jpg").unlink()
    with pytest.raises(DataNotFoundError, match=r"MIMIC-CXR lacks 1 image file in .*s50000003/a1\.jpg"):
        read(annotated)
    data = read(annotated, missing="skip")
    assert len(data.splits["train"]) == 10
    assert data.removed == {"image files missing": 1}


def test_a_killed_build_goes_on(roots, monkeypatch):
    monkeypatch.setattr("mrg.datamodules.mimic.tables._SHARD_STUDIES", 1)
    parsed = []

    def parse(text):
        parsed.append(text)
        if len(parsed) == 6:
            raise KeyboardInterrupt
        return parse_sections(text)

    monkeypatch.setattr("mrg.datamodules.mimic.rows.parse_sections", parse)
    with pytest.raises(KeyboardInterrupt):
        read(roots)
    assert len(read(roots).splits["train"]) == 3
    assert len(parsed) == 6 + 6  # the four studies of the first patient were not read again
