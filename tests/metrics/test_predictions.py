import csv
import json

import pytest

from mrg.errors import UserError
from mrg.metrics import packed
from mrg.metrics.predictions import Predictions, align, read_predictions, read_reports

ROWS = [
    {"id": "a", "prediction": "No edema.\u2028Heart normal.", "target": 'Edema, "mild".'},
    {"id": "b", "prediction": "", "target": "No effusion."},
]
COLUMNS = {"id": "id", "preds": "prediction", "target": "target"}
EXPECTED = Predictions(["a", "b"], [r["prediction"] for r in ROWS], [r["target"] for r in ROWS], True, COLUMNS)


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.tsv", "P.JSONL"])
def test_forms(tmp_path, name):
    path = tmp_path / name
    assert read_predictions(write(path.with_suffix(path.suffix.lower()), ROWS).rename(path)) == EXPECTED


def test_rexrank(tmp_path):
    """Studies by id, each with its own fields and the model's report."""
    studies = {
        "p1_s1": {"image_path": ["a.png"], "context": "Cough.", "report": "Edema.", "model_prediction": "No edema."},
        "p2_s1": {"image_path": ["b.png"], "context": "", "report": "Clear.", "model_prediction": "Clear."},
    }
    path = write(tmp_path / "rexrank.json", studies)
    expected = Predictions(
        ["p1_s1", "p2_s1"],
        ["No edema.", "Clear."],
        ["Edema.", "Clear."],
        True,
        {"id": "study_id", "preds": "model_prediction", "target": "report"},
    )
    assert read_predictions(path) == expected


def test_columns_by_name_and_rows_without_ids(tmp_path):
    path = write(tmp_path / "own.csv", [{"text": "a", "gold": "b"}, {"text": "c", "gold": "d"}])
    got = read_predictions(path, preds_column="text", target_column="gold")
    assert got == Predictions(
        ["1", "2"], ["a", "c"], ["b", "d"], False, {"id": "row number", "preds": "text", "target": "gold"}
    )
    with pytest.raises(
        ValueError, match=r"own.csv has no column for the generated report .* it has 'text', 'gold': .*--preds"
    ):
        read_predictions(path, target_column="gold")
    with pytest.raises(ValueError, match=r"\(looked for 'note'\); it has 'text', 'gold': name it with --target"):
        read_predictions(path, preds_column="text", target_column="note")
    with pytest.raises(ValueError, match="no 'key' in 2 rows: 1, 2; it has 'text', 'gold'"):
        read_predictions(path, "key", "text", "gold")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"id": 1}\n\n{"id": \n', "line 3 is not JSON: Expecting value at column"),
        ("p.jsonl", b"[1, 2]\n", "row 1 is not an object with named fields, but list"),
        ("p.jsonl", b"\n", "holds no studies"),
        ("p.jsonl", b"\xff\xfe\n", "is not UTF-8 text"),
        ("p.json", b'{"a": 1}', "neither a list of studies nor an object of studies by id"),
        ("p.json", b"{", "line 1 is not JSON"),
        ("p.csv", b"id,prediction,target\n1,a,b,c\n", "expected 3 fields in line 2, saw 4"),
        ("p.csv", b"id,prediction,target\n1,a,nan\n2,b,\n", "no reference report: 'target' .* any of its 2 rows"),
        ("p.csv", b"id,prediction,target\n1,a\n", "expected 3 fields in line 2, saw 2"),
        ("p.csv", b'id,prediction,target\n1,"a,b\n', "not a readable table"),
        ("p.csv", b'id,prediction,target\n1,"a\nb",c\n2,"a,b\n3,c,d\n', "row that starts at line 4: EOF inside string"),
        ("p.csv", b'id,prediction,target\n1,"a" b,c\n', "row that starts at line 2: ',' expected after"),
        ("p.csv", b"id,prediction,target\n1,a,b\rc\n", "expected 3 fields in line 3, saw 1"),
        ("p.csv", b"id;prediction;target\n1;a;b\n", "separates its columns by semicolons"),
        ("p.csv", b"id,prediction,prediction,target\n1,a,b,c\n", "more than one column 'prediction'"),
        ("p.jsonl", b'{"id": null, "prediction": "a", "target": "b"}\n', "no 'id' in 1 rows: 1; it has 'id', "),
        (
            "p.jsonl",
            b'{"id": 1, "prediction": "a", "target": "b"}\n{"prediction": "a", "target": "b"}\n',
            "in 1 rows: 2",
        ),
        ("p.json", b"[" * 100_000, "cannot be read as JSON"),
        ("p.txt", b"", r"ends in .jsonl, .json, .csv, .tsv, but got .*p.txt"),
        ("p.jsonl", b'{"id": 1, "prediction": 3, "target": "b"}\n', "'prediction' is not a text in 1 of 1 rows: 1"),
        ("p.jsonl", b'{"id": 1, "prediction": "", "target": ""}\n' * 2, "holds 1 studies twice: 1"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(path)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none\.jsonl"):
        read_predictions(tmp_path / "none.jsonl")


def test_align():
    first = Predictions(["a", "b", "c"], ["1", "2", "3"], ["x", "y z", "w"], True, COLUMNS)
    second = Predictions(["c", "a", "b"], ["6", "4", "5"], ["w", "x", " y\nz"], True, COLUMNS)
    assert align(first, second, ("one", "two")).preds == ["4", "5", "6"]
    with pytest.raises(ValueError, match=r"1 only in one \(c\) and 2 only in two \(d, e\)"):
        align(first, Predictions(list("abde"), ["1"] * 4, ["x"] * 4, True, COLUMNS), ("one", "two"))
    with pytest.raises(ValueError, match=r"same studies, but 1 only in one \(c\)\.$"):
        align(first, Predictions(list("ab"), ["1"] * 2, ["x", "y z"], True, COLUMNS), ("one", "two"))
    many = Predictions([str(i) for i in range(30)], ["1"] * 30, ["x"] * 30, True, COLUMNS)
    with pytest.raises(ValueError, match=r"30 only in two \(0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more\)"):
        align(first, many, ("one", "two"))
    with pytest.raises(ValueError, match="those of 1 studies differ between one and two: b"):
        align(first, second._replace(target=["w", "x", "y"]), ("one", "two"))


def test_a_column_cannot_be_both_sides(tmp_path):
    path = write(tmp_path / "p.jsonl", ROWS)
    with pytest.raises(ValueError, match="'prediction' cannot be both report and reference"):
        read_predictions(path, target_column="prediction")


def test_headings_with_spaces_and_long_fields(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id, prediction , target\n1," + "a" * 200_000 + ",b\n")
    assert read_predictions(path).preds == ["a" * 200_000]


MISSING_WORDS = """study_id,prediction,reference
s1,The lungs are clear. No effusion.,No acute disease. No pleural effusion.
s2,Small left effusion.,Moderate left pleural effusion.
s3,nan,The heart is normal.
s4,Cardiomegaly.,nan
s5,None,None
s6,,Edema.
"""


@pytest.mark.parametrize("form", ["csv", "null", "NaN"])
def test_missing_references_are_excluded_and_missing_predictions_are_empty(tmp_path, form):
    path = tmp_path / ("p.csv" if form == "csv" else "p.json")
    path.write_text(MISSING_WORDS)
    if form != "csv":
        rows = list(csv.DictReader(MISSING_WORDS.splitlines()))
        value = None if form == "null" else float("nan")
        path.write_text(json.dumps([{k: value if v in ("nan", "None") else v for k, v in r.items()} for r in rows]))
    got = read_predictions(path)
    assert got.ids == ["s1", "s2", "s3", "s6"]
    assert got.preds == ["The lungs are clear. No effusion.", "Small left effusion.", "", ""]
    assert got.target[2:] == ["The heart is normal.", "Edema."]
    assert (got.no_target, got.no_preds) == (("s4", "s5"), ("s3",))


def test_a_study_without_the_key_of_its_reference_is_excluded(tmp_path):
    """As in ReXrank's files, where some studies have no findings."""
    path = tmp_path / "rexrank.json"
    studies = {"a": {"model_prediction": "Clear.", "section_findings": "Clear."}, "b": {"model_prediction": "Edema."}}
    path.write_text(json.dumps(studies))
    got = read_predictions(path)
    assert (got.ids, got.no_target) == (["a"], ("b",))


def test_a_repeated_study_is_an_error(tmp_path):
    """json alone takes the last one without a word."""
    path = tmp_path / "p.json"
    path.write_text('{"s1": {"prediction": "a", "target": "b"}, "s1": {"prediction": "c", "target": "d"}}')
    with pytest.raises(ValueError, match=r"p\.json .*the key 's1' occurs more than once"):
        read_predictions(path)
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": 1, "prediction": "a", "target": "b"}\n{"id": 2, "prediction": "a", "prediction": "b"}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl, line 2: the key 'prediction' occurs more than once"):
        read_predictions(path)


def test_findings_are_the_references_of_rexrank(tmp_path):
    """Its files hold whole reports, too; findings that repeat the reference are perfect."""
    findings = "The heart is enlarged. No effusion."
    entry = {"section_findings": findings, "report": f"{findings} Impression: Possible edema.", "age": 3}
    path = tmp_path / "rexrank.json"
    path.write_text(json.dumps({"a": {**entry, "model_prediction": findings}}))
    read = read_predictions(path)
    assert read.columns["target"] == "section_findings"
    assert read.preds == read.target
    assert read_predictions(path, target_column="report").target == [entry["report"]]
    path.write_text(json.dumps({"a": {"report": findings, "model_prediction": findings}}))
    assert read_predictions(path).columns["target"] == "report"


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_many_studies_are_packed(tmp_path, monkeypatch, name):
    rows = [{"id": f"s{i}", "prediction": f"Report {i % 5}.", "target": f"Target {i % 9}."} for i in range(40)]
    rows[3]["target"], rows[17]["target"], rows[30]["prediction"] = "nan", "", "None"
    path = write(tmp_path / name, rows)
    expected = read_predictions(path)
    monkeypatch.setattr(packed, "_BLOCK", 3)
    found = read_predictions(path)
    assert [type(part) for part in found[:3]] == [packed.PackedTexts] * 3
    assert Predictions(*map(list, found[:3]), *found[3:]) == expected
    assert (len(found.ids), found.no_target, found.no_preds) == (38, ("s3", "s17"), ("s30",))
    assert align(found, expected, ("a", "b")).preds == expected.preds
    assert list(read_reports(path)) == expected.target

    rows[37]["id"] = rows[17]["id"]  # in another block, one of them without a reference
    with pytest.raises(UserError, match=r"holds 1 studies twice: s17; each must count once\.$"):
        read_predictions(write(path, rows))
    rows[37]["id"] = " "
    with pytest.raises(UserError, match=r"has no 'id' in 1 rows: 38; it has 'id', 'prediction', 'target'\.$"):
        read_predictions(write(path, rows))


def test_training_reports_by_study(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"a": {"report": "Edema."}, "b": {"report": "Clear."}}))
    assert list(read_reports(path)) == ["Edema.", "Clear."]
