"""The gallery from the command line: of a tested run, and of files of reports by any models."""

import csv
import json
import re

import pytest

from mrg.cli import main
from mrg.datamodules.demo import World, make_study
from mrg.files import write_json, write_lines
from mrg.metrics.verdicts import VERDICTS
from tests.pages.test_tested_run import write_run

TARGET = {"CXR1": "Cardiomegaly. No edema.", "CXR10": "The lungs are clear.", "CXR2": "Left effusion."}
PREDS = {"CXR1": "Cardiomegaly.", "CXR10": "Pulmonary edema.", "CXR2": "The lungs are clear."}


def write_csv(path, column, texts, id_column="id"):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[id_column, column], *texts.items()])
    return path


@pytest.fixture
def files(tmp_path):
    return write_csv(tmp_path / "preds.csv", "prediction", PREDS), write_csv(tmp_path / "refs.csv", "report", TARGET)


@pytest.fixture
def images(tmp_path, save_png):
    """Images of CXR1 by their names, of CXR10 by their folder, and one of no study."""
    for name in ("CXR1_2_lateral.png", "CXR1_10_frontal.png", "p1/CXR10/0.png", "other.png"):
        save_png(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture
def save_png():
    from PIL import Image

    def save(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 10), 90).save(path)

    return save


def read(page):
    text = page.read_text(encoding="utf-8")
    return text, json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def failure(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, argv)))
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "\n" not in err
    return err


def test_files_of_another_model(files, images, tmp_path, capsys):
    preds, refs = files
    main(["gallery", str(preds), "--references", str(refs), "--images", str(images)])
    out, err = capsys.readouterr()
    assert out == f"Gallery: {tmp_path / 'preds.gallery.html'}\n"
    assert "1 of 4 images" in err
    assert "match no id: other.png." in err
    assert "1 of 3 studies have no image" in err
    text, data = read(tmp_path / "preds.gallery.html")
    studies = {study["id"]: study for study in data["studies"]}
    assert [view["position"] for view in studies["CXR1"]["views"]] == ["lateral", "frontal"]  # 2 before 10
    assert [len(studies[name]["views"]) for name in TARGET] == [2, 1, 0]
    assert [study["outputs"][0]["mccs"] for study in data["studies"]] == sorted(
        o["outputs"][0]["mccs"] for o in data["studies"]
    )
    assert VERDICTS[int(studies["CXR1"]["outputs"][0]["verdicts"][1])] == "correct"  # cardiomegaly
    assert VERDICTS[int(studies["CXR2"]["outputs"][0]["verdicts"][9])] == "missed"  # effusion
    assert "constant normal" in text
    assert "preds: 3 studies" in text


def test_bad_files_are_one_line(files, images, tmp_path, capsys):
    preds, refs = files
    none = tmp_path / "none"
    none.mkdir()
    assert "hold no image" in failure(capsys, "gallery", preds, "--references", refs, "--images", none)
    (tmp_path / "strange").mkdir()
    (images / "other.png").rename(tmp_path / "strange" / "other.png")
    message = failure(capsys, "gallery", preds, "--references", refs, "--images", tmp_path / "strange")
    assert "None of the 1 images" in message
    assert "expected the id (CXR1, CXR10, CXR2)" in message
    assert "but the images are other.png" in message
    assert "are the same file" in failure(capsys, "gallery", preds, preds)
    assert "to be a folder of images" in failure(capsys, "gallery", preds, "--images", tmp_path / "missing")
    write_csv(refs, "report", {**TARGET, "CXR3": "Edema."})
    assert "CXR3" in failure(capsys, "gallery", preds, "--references", refs)
    assert "--max_studies to be at least 1" in failure(capsys, "gallery", preds, "--max_studies", 0)


def test_without_references_it_shows_what_is_stated(files, tmp_path, capsys):
    main(["gallery", str(files[0])])
    assert "has no references: pass --references FILE" in capsys.readouterr().err
    text, data = read(tmp_path / "preds.gallery.html")
    assert data["hasReference"] is False
    assert "There are no references" in text


def test_fields_of_json_are_shown(tmp_path):
    rows = [
        {"id": n, "prediction": PREDS[n], "thinking": "Edema?", "target": t, "format": False} for n, t in TARGET.items()
    ]
    write_lines(tmp_path / "a.jsonl", rows)
    main(["gallery", str(tmp_path / "a.jsonl")])
    _, data = read(tmp_path / "a.gallery.html")
    assert {(o["thinking"], o["format"]) for study in data["studies"] for o in study["outputs"]} == {("Edema?", False)}


def test_several_systems_side_by_side(files, tmp_path):
    preds, refs = files
    write_csv(tmp_path / "other.csv", "generated", dict(reversed(TARGET.items())))
    main(["gallery", str(preds), str(tmp_path / "other.csv"), "--references", str(refs), "--title", "Both"])
    text, data = read(tmp_path / "preds.gallery.html")
    assert data["systems"] == ["preds", "other"]
    assert all(study["outputs"][1]["mccs"] == 1 for study in data["studies"])  # joined by id, not by row
    assert "<title>Both</title>" in text


def test_a_run_is_shown_with_the_results_of_its_test(tmp_path):
    studies = [make_study(World(), 3, "test", index, 112) for index in range(4)]
    write_run(tmp_path / "run", studies)
    main(["gallery", str(tmp_path / "run")])
    _, data = read(tmp_path / "run" / "gallery.html")
    assert [len(study["views"]) for study in data["studies"]] == [len(study.views) for study in studies]


def test_two_files_are_compared(files, tmp_path, capsys):
    preds, refs = files
    other = write_csv(tmp_path / "b.csv", "generated", TARGET, "study_id")
    main(["compare", str(preds), str(other), "--references", str(refs), "--trials", "20"])
    assert "A: preds\nB: b\n3 studies, labeler rules" in capsys.readouterr().out
    assert read(tmp_path / "compare-b.html")[1]["sort"] == "changes"


@pytest.mark.parametrize("command", ["gallery", "compare"])
def test_a_redacted_page_has_labels_and_scores_only(files, images, tmp_path, command):
    preds, refs = files
    secret = {"CXR1": "Zebrafish cardiomegaly.", "CXR10": "Zebrafish lungs are clear.", "CXR2": "Zebrafish effusion."}
    write_csv(refs, "report", secret)
    write_csv(tmp_path / "b.csv", "prediction", secret)
    others = [tmp_path / "b.csv"] if command == "compare" else []
    main(list(map(str, [command, preds, *others, "--references", refs, "--images", images, "--redact"])))
    page = tmp_path / ("compare-b-redacted.html" if others else "preds.gallery-redacted.html")
    text, data = read(page)
    for word in ("Zebrafish", "Cardiomegaly.", "Pulmonary edema", "CXR", 'id="image-', str(tmp_path)):
        assert word not in text
    kept = {"labels", "verdicts", "mccs", "format", "change"}
    assert sorted(study["id"] for study in data["studies"]) == ["1", "2", "3"]
    for study in data["studies"]:
        assert study.keys() <= {"id", "place", "labels", "outputs", "views"}
        assert study["views"] == []
        assert all(output.keys() <= kept for output in study["outputs"])


def test_the_margin_of_a_run_is_taken(files, tmp_path):
    studies = [make_study(World(), 3, "test", index, 112) for index in range(2)]
    rows = write_run(tmp_path / "run", studies)
    write_json(tmp_path / "run" / "results.json", {"margin": 0.3, "labeler": "rules"})
    write_lines(tmp_path / "other.jsonl", [{**row, "images": []} for row in rows])
    main(["gallery", str(tmp_path / "run"), str(tmp_path / "other.jsonl"), "--show", "none"])
    assert "MCCS with margin 0.3" in (tmp_path / "run" / "gallery.html").read_text()
