"""A table gives the same studies in whichever form it comes."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.errors import DataError, DataNotFoundError
from mrg.datamodules.study import View
from mrg.datamodules.table import Columns, TableDataModule
from tests.datamodules.table.table_files import EXPECTED, ROWS, module, summary, write, write_csv


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "list.json", "t.jsonl", "t.parquet", "folder", "saved"])
def test_every_form_gives_the_same_studies(root, name):
    data = module(root, write(root, name))
    assert summary(data.read()) == EXPECTED
    assert data.num_rows == 3


def test_an_object_of_studies_by_id(root):
    rows = {row["uid"]: {**row, "f": row["f"] or float("nan")} for row in ROWS}
    (root / "map.json").write_text(json.dumps(rows))
    columns = Columns("a", ["f", "i"], id="study_id", patient="patient", split="set", indication="why")
    assert summary(module(root, "map.json", columns).read()) == EXPECTED


def test_splits_of_a_saved_data_set_and_of_files(root):
    columns = Columns("a", ["f", "i"], id="uid", patient="patient", indication="why")
    parts = {"train": ROWS[:1], "validation": ROWS[1:2], "test": ROWS[2:]}
    whole = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    whole.save_to_disk(root / "saved")
    assert summary(module(root, "saved", columns, "given").read()) == EXPECTED
    for name, rows in parts.items():
        write_csv(root / f"{name}.csv", rows)
    files = {"train": "train.csv", "val": "validation.csv", "test": "test.csv"}
    assert summary(module(root, files, columns, "given").read()) == EXPECTED


def test_rows_of_images_become_studies(root):
    rows = [
        {"path": "/x/p1/s2/lat.png", "f": "", "view": "Lateral"},
        {"path": "/x/p1/s2/pa.png", "f": "", "view": "PA"},
        {"path": "/x/p2/s1/v.png", "f": "Clear.", "view": "oblique"},
    ]
    for row in rows:
        file = root / "images" / row["path"][1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(file)
        row["path"] = row["path"][1:].replace(".png", ".jpg")  # the table says .jpg, the disk has .png
        row["f"] = row["f"] or "Large heart."
    write_csv(root / "t.csv", rows)
    columns = Columns(
        "path", "f", id="path", id_pattern=r"(p\d)/(s\d)", patient="path", patient_pattern=r"p\d", position="view"
    )
    first, second = module(root, columns=columns, split="test", row="image").read()["test"]
    assert (first.id, first.patient, first.report) == ("p1_s2", "p1", "Large heart.")
    assert [(v.image.name, v.position) for v in first.views] == [("lat.png", "lateral"), ("pa.png", "frontal")]
    assert [(v.image.name, v.position) for v in second.views] == [("v.png", "")]
    frontal = module(root, columns=columns, split="test", row="image", positions=["frontal"])
    assert frontal.describe() == (
        "TableDataModule (train 0, val 0, test 1) from t.csv, 3 rows; left out: 1 with no frontal view"
    )
    assert [len(study.views) for study in frontal.splits["test"]] == [1]


@pytest.mark.parametrize("cell", ["a.png;b.png", '["a.png", "b.png"]', "['a.png', 'b.png']", " a.png ; b.png "])
def test_several_paths_in_one_field(root, cell):
    write_csv(root / "t.csv", [{"a": cell, "view": "AP;L-Lateral" if ";" in cell else "['AP', 'LL']"}])
    columns = Columns("a", position="view", image_delimiter=";")
    study = module(root, columns=columns, split="test").read()["test"][0]
    assert [view.image.name for view in study.views] == ["a.png", "b.png"]
    assert study.views[0].position == "frontal"
    assert study.id == "row 1"


TWO_COLUMNS = [
    {"id": "1", "frontal": "a.png", "lateral": "b.png", "views": "PA;LATERAL", "f": "Small left effusion seen."},
    {"id": "2", "frontal": "", "lateral": "b.png", "views": "PA;LATERAL", "f": "Right lung base opacity."},
    {"id": "3", "frontal": "nan", "lateral": "c.png", "views": "PA;LATERAL", "f": "Mild cardiomegaly is seen."},
]


@pytest.mark.parametrize("form", ["csv", "json", "stored"])
def test_an_empty_path_keeps_its_place(root, form, caplog):
    """Studies 2 and 3 have one view each, a lateral one."""
    columns = Columns(["frontal", "lateral"], "f", id="id", position="views", image_delimiter=";")
    if form == "csv":
        write_csv(root / "t.csv", TWO_COLUMNS)
    elif form == "json":
        rows = [{**r, "image": [r["frontal"] or None, r["lateral"]], "views": ["PA", "LATERAL"]} for r in TWO_COLUMNS]
        (root / "t.json").write_text(json.dumps(rows))
        columns = Columns("image", "f", id="id", position="views")
    else:
        features = datasets.Features({k: datasets.Value("string") for k in TWO_COLUMNS[0]})
        features |= {"frontal": datasets.Image(), "lateral": datasets.Image()}
        rows = [{**r, "frontal": as_png(9) if r["id"] == "1" else None, "lateral": as_png(5)} for r in TWO_COLUMNS]
        datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(root / "saved")
    table = {"csv": "t.csv", "json": "t.json", "stored": "saved"}[form]
    studies = module(root, table, columns, "test").read()["test"]
    assert [[v.position for v in s.views] for s in studies] == [["frontal", "lateral"], ["lateral"], ["lateral"]]
    if form == "stored":
        assert studies[1].views[0].read().getpixel((0, 0)) == 5
    else:
        assert [s.views[-1].image.name for s in studies] == ["b.png", "b.png", "c.png"]
    frontal = module(root, table, columns, "test", positions=["frontal"])
    assert "test 1) from" in frontal.describe()
    assert "left out: 2 with no frontal view" in frontal.describe()
    assert not caplog.records


@pytest.mark.parametrize(
    ("cell", "views", "warning"),
    [
        ("a.png|b.png", "PA, LAT", "1 row has more or fewer positions in 'views' than images, so that"),
        ("a.png|b.png", "PA", "1 row has more or fewer positions in 'views' than images, so that"),
        ("a.png", "PA|LAT", "1 row has more or fewer positions in 'views' than images, so that"),
        ("a.png", "PA, LAT", "no value of 'views' is a known position ('PA, LAT'), so that"),
        ("a.png|b.png", "", ""),
        ("a.png|b.png", "PA|", ""),
        ("a.png|", "PA|LAT", ""),
        ("nan", "PA", ""),
    ],
)
def test_positions_that_cannot_be_paired_are_unknown_and_say_so(root, caplog, cell, views, warning):
    write_csv(root / "t.csv", [{"a": cell, "views": views}, {"a": "c.png", "views": ""}])
    columns = Columns("a", position="views", image_delimiter="|")
    with caplog.at_level("WARNING", "mrg"):
        studies = module(root, columns=columns, split="test").read()["test"]
    found = [view.position for study in studies for view in study.views if study.id == "row 1"]
    assert found == ([""] * len(found) if warning or not views else ["frontal", ""][: len(found)])
    assert [warning in record.getMessage() for record in caplog.records] == [True] * bool(warning)


def test_the_last_part_of_an_identifier_is_no_extension(root):
    """Studies A and B have their own files although a shorter name exists, and that of C is missing."""
    for name in ("1.2.840.113.png", "1.2.840.113.5.png", "1.2.840.113.6.png"):
        Image.new("L", (4, 4)).save(root / "images" / name)
    names = ["1.2.840.113.5", "1.2.840.113.6", "1.2.840.113.7"]
    write_csv(root / "t.csv", [{"id": i, "a": name} for i, name in zip("ABC", names, strict=True)])
    data = module(root, columns=Columns("a", id="id"), split="test", missing_images="drop")
    data.setup()
    found = {study.id: study.views[0].image.name for study in data.to_predict()}
    assert found == {"A": "1.2.840.113.5.png", "B": "1.2.840.113.6.png"}
    assert data.dropped["missing_images drop"] == [str(root / "images" / "1.2.840.113.7")]


def as_png(level):
    file = io.BytesIO()
    Image.new("L", (6, 4), level).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("form", ["image", "bytes", "list", "list of bytes"])
@pytest.mark.parametrize("kind", ["t.parquet", "saved"])
def test_images_in_the_table_itself(root, form, kind):
    levels = [[10], [20, 30]] if form.startswith("list") else [[10], [20]]
    cells = [[as_png(level) for level in row] for row in levels]
    cells = cells if form.startswith("list") else [row[0] for row in cells]
    features = {
        "image": datasets.Image(),
        "bytes": datasets.Value("binary"),
        "list": datasets.List(datasets.Image()),
        "list of bytes": datasets.List(datasets.Value("binary")),
    }
    table = datasets.Dataset.from_dict(
        {"x": cells, "f": ["One.", "Two."]},
        features=datasets.Features({"x": features[form], "f": datasets.Value("string")}),
    )
    table.to_parquet(root / kind) if kind == "t.parquet" else table.save_to_disk(root / kind)
    studies = module(root, kind, Columns("x", "f"), "test").read()["test"]
    shown = [[np.asarray(view.load())[0, 0, 0] for view in study.views] for study in studies]
    assert shown == levels
    assert str(studies[0].views[0].image) == f"{kind}, row 1, x"


def test_random_splits_keep_patients_together(root):
    rows = [{"a": "a.png", "f": "Clear.", "p": f"p{k // 2}"} for k in range(60)]
    write_csv(root / "t.csv", rows)
    columns = Columns("a", "f", patient="p")
    splits = module(root, columns=columns, split="random", seed=1, fractions=(0.5, 0.2, 0.3)).read()
    patients = [{study.patient for study in part} for part in splits.values()]
    assert all(patients)
    assert sum(map(len, patients)) == 30
    assert sum(map(len, splits.values())) == 60
    assert summary(splits) == summary(
        module(root, columns=columns, split="random", seed=1, fractions=(0.5, 0.2, 0.3)).read()
    )


def test_validation_taken_from_train_leaves_the_test_split_alone(root):
    rows = [{"a": "a.png", "f": "Clear.", "p": f"p{k // 2}", "set": "train" if k < 60 else "test"} for k in range(70)]
    write_csv(root / "t.csv", rows)
    splits = module(root, columns=Columns("a", "f", patient="p", split="set"), val_fraction=0.3).read()
    assert len(splits["test"]) == 10
    assert splits["val"]
    assert not {s.patient for s in splits["val"]} & {s.patient for s in splits["train"]}


def test_filters_say_what_they_remove(root):
    rows = [{"a": a, "f": f} for a, f in (("a.png", "Heart is large."), ("b.png", " "), ("c.png", "Clear."), ("", "x"))]
    write_csv(root / "t.csv", rows)
    data = module(root, columns=Columns("a", "f"), split="test", min_words=2)
    assert [study.id for study in data.read()["test"]] == ["row 1"]
    assert data.removed == {"an empty report": 1, "fewer than 2 words in the report": 1, "no image": 1}
    kept = module(root, columns=Columns("a", "f"), split="test", empty_reports="keep").read()["test"]
    assert [study.report for study in kept] == ["Heart is large.", "", "Clear."]
    with pytest.raises(
        DataError,
        match=r"^Table t\.csv: none of its 4 studies is left: 2 with fewer than 9 words in the report, 1 with an empty "
        r"report, 1 with no image\. Check data\.init_args\.columns",
    ) as caught:
        module(root, columns=Columns("a", "f"), split="test", min_words=9).read()
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"1 studies have an empty report: row 2; set .*empty_reports to drop"):
        module(root, columns=Columns("a", "f"), split="test", empty_reports="raise").read()


def test_missing_images_are_counted_or_dropped(root):
    rows = [{"a": f"{k}.png;a.png", "f": "Clear."} for k in range(8)] + [{"a": "z.png", "f": "Clear."}]
    write_csv(root / "t.csv", rows)
    columns = Columns("a", "f", image_delimiter=";")
    with pytest.raises(
        DataNotFoundError,
        match=r"^9 of the 17 images .* 0\.png, 1\.png, 2\.png, 3\.png, 4\.png, …; set .*missing_images",
    ):
        module(root, columns=columns, split="test").read()
    data = module(root, columns=columns, split="test", missing_images="drop")
    assert [[v.image.name for v in s.views] for s in data.read()["test"]] == [["a.png"]] * 8
    assert data.removed == {"no image": 1}
    with pytest.raises(DataNotFoundError, match=r"17 of the 17 images .*; please check data\.init_args\.root"):
        TableDataModule("t.csv", columns, str(root), "nowhere", split="test", missing_images="drop").read()
    data.checking = True  # a check reads what a run reads
    assert [[v.image.name for v in s.views] for s in data.read()["test"]] == [["a.png"]] * 8
    assert [Path(name).name for name in data.dropped["missing_images drop"]][:2] == ["0.png", "1.png"]
    data = module(root, columns=columns, split="test")
    data.checking = True  # and lists itself what stops a run
    assert [len(s.views) for s in data.read()["test"]] == [2] * 8 + [1]


def test_latin_1_and_other_delimiters(root):
    write_csv(root / "t.csv", [{"a": "a.png", "f": "Épanchement."}], delimiter=";", encoding="latin-1")
    data = module(root, columns=Columns("a", "f"), split="test", encoding="latin-1", delimiter=";")
    assert data.read()["test"][0].report == "Épanchement."


def test_patterns(root):
    write_csv(root / "t.csv")
    with pytest.raises(ValueError, match=r"columns\.id_pattern '\(' is not a regular expression"):
        module(root, columns=Columns("a", "f", id="uid", id_pattern="("), split="test").read()
    with pytest.raises(DataError, match=r"3 of its studies have a 'uid' that .*id_pattern does not match: 007"):
        module(root, columns=Columns("a", "f", id="uid", id_pattern="x"), split="test").read()


@pytest.mark.parametrize("absolute", [False, True])
def test_views_are_files(root, absolute):
    path = root / "images" / "a.png"
    write_csv(root / "t.csv", [{"a": path if absolute else "a.png"}])
    assert module(root, columns=Columns("a"), split="test").read()["test"][0].views == (View(path),)


def test_fields_with_quotes_and_line_breaks(root):
    """What is written correctly is read as written."""
    reports = ['A 5" tube, "in place".', "Line one.\nLine two.", "Line one.\rLine two.\r\n\r\nLine three.", "a, b"]
    write_csv(root / "t.csv", [{"a": "a.png", "f": report} for report in reports])
    (root / "t.csv").write_bytes((root / "t.csv").read_bytes().replace(b"a.png", b"\n\na.png", 2))
    studies = module(root, columns=Columns("a", "f"), split="test").read()["test"]
    assert [study.report for study in studies] == reports


PATIENTS = {
    "train": [(1, 12, "Small left effusion today."), (2, 13, "The lungs are clear today.")],
    "val": [(3, 14, "Mild edema is seen.")],
    "test": [
        (4, 12.0, "Larger left effusion today."),
        (5, 13.0, "The lungs remain clear."),
        (6, None, "Opacity seen."),
    ],
}


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_a_patient_is_one_patient_in_every_form(root, form):
    """pandas writes patients as floats where one is unknown; two studies of test share a patient with train."""
    for split, rows in PATIENTS.items():
        file = root / f"{split}.{form}"
        if form == "csv":
            text = "".join(f"{i},{'' if p is None else p},a.png,{f}\n" for i, p, f in rows)
            file.write_text(f"id,patient,a,f\n{text}")
            continue
        table = [{"id": i, "patient": p, "a": "a.png", "f": f} for i, p, f in rows]
        if form == "parquet":
            datasets.Dataset.from_list(table).to_parquet(file)
        else:
            lines = [
                json.dumps({**r, "patient": float("nan") if r["patient"] is None else r["patient"]}) for r in table
            ]
            file.write_text("\n".join(lines) if form == "jsonl" else f"[{','.join(lines)}]")
    files = {split: f"{split}.{form}" for split in PATIENTS}
    splits = module(root, files, Columns("a", "f", id="id", patient="patient"), "given").read()
    train = {study.patient for study in splits["train"]}
    assert train == {"12", "13"}
    assert [study.patient for study in splits["test"]] == ["12", "13", ""]
    assert [study.id for split in PATIENTS for study in splits[split]] == list("123456")


def test_ids_that_became_floats(root):
    (root / "t.csv").write_text("id,a,f\n50414267.0,a.png,Left effusion.\n50414268,b.png,Clear lungs.\n")
    data = module(root, columns=Columns("a", "f", id="id"), split="test")
    assert [study.id for study in data.read()["test"]] == ["50414267", "50414268"]
    (root / "t.csv").write_text("id,a,f\n12.0,a.png,Left effusion.\n12,b.png,Clear lungs.\n")
    with pytest.raises(DataError, match="1 of its studies occur in more than one row"):
        module(root, columns=Columns("a", "f", id="id"), split="test").read()
