"""ReXrank's files in, submissions out: nothing is lost on the way, and they can be scored."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mrg.cli import main
from mrg.datamodules.errors import DataError, DataNotFoundError
from mrg.datamodules.rexrank import RexrankDataModule
from mrg.metrics.__main__ import main as metrics
from mrg.metrics.predictions import read_predictions

CONFIGS = Path(__file__).parents[2] / "configs"

ENTRIES = {
    "50001": {  # as the studies of MIMIC-CXR are written there
        "image_path": ["/p10/s1/a.jpg", "/p10/s1/b.jpg"],
        "section_findings": "Large heart.\nNo effusion.",
        "section_impression": float("nan"),
        "frontal_lateral": ["left lateral", "antero-posterior"],
        "split": "test",
        "subject_id": 10046166,
        "context": "Age:50-60.Gender:M.Indication: Cough,\nfever.Comparison: None.",
        "key_image_path": "/p10/s1/b.jpg",
        "report": "Findings: Large heart.\nNo effusion. Impression: None.",
    },
    "patient1_study1": {  # as those of CheXpert Plus
        "image_path": ["valid/v.png"],
        "report": "Findings: None. Impression: 1. NO CHANGE.",
        "context": "Age:77.0.Gender:F.Indication:nanComparison: None.",
        "section_clinical_history": float("nan"),
        "section_findings": float("nan"),
        "section_impression": "\n1. NO CHANGE.\n",
        "frontal_lateral": ["Frontal"],
        "age": 77.0,
        "key_image_path": "valid/v.png",
    },
    "CXR1": {  # as those of IU X-Ray
        "key_image_path": "CXR1/0.png",
        "image_path": ["CXR1/0.png", "CXR1/1.png"],
        "report": "Findings: Clear. Impression: Normal.",
        "section_findings": "The lungs are clear.",
        "section_impression": "Normal.",
        "frontal_lateral": ["Frontal", "Lateral"],
        "context": "Indication: Syncope. Comparison: None",
    },
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "rexrank.json").write_text(json.dumps(ENTRIES))
    for entry in ENTRIES.values():
        for path in entry["image_path"]:
            file = tmp_path / "images" / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 90).save(file)
    return tmp_path


def module(root, **settings):
    data = RexrankDataModule("rexrank.json", str(root), **settings)
    data.setup()
    return data


def test_studies(root):
    data = module(root)
    assert data.splits["train"] == data.splits["val"] == []
    first, last = data.splits["test"]
    assert (first.id, first.patient, first.indication) == ("50001", "10046166", "Cough,\nfever.")
    assert first.report == "Large heart.\nNo effusion."
    assert [(view.image.name, view.position) for view in first.views] == [("b.jpg", "frontal"), ("a.jpg", "lateral")]
    assert (last.id, last.patient, last.indication) == ("CXR1", "", "Syncope.")
    assert [study.id for study in data.to_predict()] == list(ENTRIES)
    assert data.to_predict()[1].indication == ""
    assert data.removed == {"no section_findings": 1}


def test_references_and_order_of_views(root):
    assert [s.id for s in module(root, reference="impression").splits["test"]] == ["patient1_study1", "CXR1"]
    both = module(root, reference="both", key_image_first=False).splits["test"]
    assert [study.report for study in both] == [entry["report"] for entry in ENTRIES.values()]
    assert [view.image.name for view in both[0].views] == ["a.jpg", "b.jpg"]


def test_a_submission_keeps_every_study_and_every_key(root, capsys):
    data = module(root)
    data.write_predictions([{"id": name, "prediction": f"Report {name}."} for name in ENTRIES], root)
    text = (root / "rexrank.json").read_text()
    written = json.loads(text)
    assert list(written) == list(ENTRIES)
    for name, entry in written.items():
        assert entry.pop("model_prediction") == f"Report {name}."
        assert list(entry) == list(ENTRIES[name])
        assert json.dumps(entry) == json.dumps(ENTRIES[name])  # NaN stays NaN
    assert "3 of 3 studies for ReXrank" in capsys.readouterr().out
    read = read_predictions(root / "rexrank.json", target_column="report")
    assert read.ids == list(ENTRIES)
    assert read.preds == [f"Report {name}." for name in ENTRIES]


def test_a_submission_with_gaps_is_remarked(root, caplog):
    first, second, third = ENTRIES
    rows = [{"id": first, "prediction": "Clear."}, {"id": third, "prediction": " \n"}]
    with caplog.at_level("WARNING", "mrg"):
        module(root).write_predictions(rows, root)
    assert [record.message for record in caplog.records if "submission" in record.message] == [
        f"The submission has 1 empty reports, which score 0: {third}.",
        f"The submission lacks 1 studies of the file: {second}.",
    ]


def test_round_trip_through_the_command_line(root, capsys):
    """A baseline stands in for a model: predict, then score the submission as anyone would."""
    files = ["iu.yaml", "data/rexrank.yaml", "baselines/constant_normal.yaml"]
    options = [
        *(f"--config={CONFIGS / file}" for file in files),
        f"--data.init_args.root={root}",
        "--data.init_args.file=rexrank.json",
        "--data.init_args.num_workers=0",
        f"--runs={root / 'runs'}",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.enable_progress_bar=false",
    ]
    main(["predict", *options])
    folder = root / "runs" / "constant_normal" / "rexrank"
    assert len(json.loads((folder / "rexrank.json").read_text())) == 3
    main(["test", *options])
    results = json.loads((folder / "results.json").read_text())
    assert results["num_studies"] == 2  # of the third there is nothing to compare with
    assert set(results["systems"]) == {"constant normal", "model"}  # no training reports, no most frequent one
    metrics([str(folder / "rexrank.json"), "--target=report", "--trials=10"])
    scored = json.loads((folder / "rexrank.json.scores.json").read_text())
    assert scored["num_studies"] == 3
    metrics([str(folder / "rexrank.json"), "--target=section_findings", "--trials=10"])  # the line that predict prints
    assert "Excluded: 1 of 3 studies have no reference: patient1_study1." in capsys.readouterr().out
    assert json.loads((folder / "rexrank.json.scores.json").read_text())["num_studies"] == 2


@pytest.mark.parametrize(
    ("content", "error", "part"),
    [
        (None, DataNotFoundError, r"does not exist; set data\.init_args\.root"),
        (b"{", DataError, "is not JSON in UTF-8"),
        (b'{"a": "\xff"}', DataError, "is not JSON in UTF-8"),
        (b"[]", DataError, "an object of studies by id"),
        (b"{}", DataError, "an object of studies by id"),
        (b'{"a": {"report": "x"}}', DataError, "1 studies have no image_path: a"),
        (b'{"a": {"image_path": ["x.png"]}}', DataNotFoundError, r"1 of the 1 images .*: x\.png; set"),
    ],
)
def test_bad_files_are_one_line(root, content, error, part):
    (root / "rexrank.json").unlink() if content is None else (root / "rexrank.json").write_bytes(content)
    with pytest.raises(error, match=part) as caught:
        module(root)
    assert "\n" not in str(caught.value)


def test_missing_images_stay_where_the_data_is_checked(root):
    (root / "images" / "CXR1" / "1.png").unlink()
    with pytest.raises(DataNotFoundError, match="1 of the 5 images"):
        module(root)
    data = RexrankDataModule("rexrank.json", str(root))
    data.checking = True
    assert [len(study.views) for study in data.read()["test"]] == [2, 2]


def test_unknown_reference(root):
    with pytest.raises(ValueError, match="argument `reference` to be one of 'findings', 'impression', 'both'"):
        module(root, reference="findings and impression")


def test_lists_of_unequal_length_are_not_paired(root, caplog):
    """The published files have such studies; which of their images a position belongs to is unknown."""
    entries = {name: dict(entry) for name, entry in ENTRIES.items()}
    entries["50001"]["frontal_lateral"] = ["left lateral"]
    entries["CXR1"]["image_path"] = ["", "CXR1/1.png"]
    (root / "rexrank.json").write_text(json.dumps(entries))
    with caplog.at_level("WARNING", "mrg"):
        first, last = module(root).splits["test"]
    assert [(view.image.name, view.position) for view in first.views] == [("b.jpg", ""), ("a.jpg", "")]
    assert [(view.image.name, view.position) for view in last.views] == [("1.png", "lateral")]
    (record,) = caplog.records
    assert "1 studies have more or fewer positions in frontal_lateral than images" in record.getMessage()
    assert "unknown: 50001." in record.getMessage()


def test_a_repeated_study_is_an_error(root):
    text = json.dumps(ENTRIES)
    (root / "rexrank.json").write_text(text[:-1] + ', "CXR1": ' + json.dumps(ENTRIES["CXR1"]) + "}")
    with pytest.raises(DataError, match=r"rexrank\.json: the key 'CXR1' occurs more than once"):
        module(root)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("image_path", {"a": "b"}, "a text or a list of texts, but got a dict"),
        ("image_path", 7, "a text or a list of texts, but got a int"),
        ("image_path", ["a.png", 3], "a text or a list of texts, but got a list"),
        ("image_path", [["a.png"]], "a text or a list of texts, but got a list"),
        ("frontal_lateral", {"0": "Frontal"}, "a text or a list of texts, but got a dict"),
        ("frontal_lateral", [True], "a text or a list of texts, but got a list"),
        ("key_image_path", ["a.png"], "a text, but got a list"),
        ("context", 3, "a text, but got a int"),
        ("section_findings", ["Clear."], "a text, but got a list"),
        ("report", {}, "a text, but got a dict"),
    ],
)
def test_a_value_of_another_type_is_one_line(tmp_path, key, value, expected):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({**ENTRIES, "50001": {**ENTRIES["50001"], key: value}}))
    with pytest.raises(DataError) as error:
        RexrankDataModule("a.json", root=str(tmp_path)).read()
    assert str(error.value) == f"File {file}, study 50001: expected {key} to be {expected}; correct it."
