"""A table gives the same studies in whichever form it comes, and what is wrong with it is one line."""

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.errors import DataError, DataNotFoundError, ImageReadError
from mrg.datamodules.study import View
from mrg.datamodules.table import Columns, TableDataModule

ROWS = [
    {"uid": "007", "patient": "p1", "a": "a.png", "f": "Heart large.", "i": "Edema.", "why": "Cough", "set": "train"},
    {"uid": "008", "patient": "p1", "a": "b.png", "f": "", "i": "Normal.", "why": "nan", "set": "valid"},
    {"uid": "009", "patient": "p2", "a": "c.png", "f": "No effusion.\nClear.", "i": "", "why": "", "set": "test"},
]
COLUMNS = Columns("a", ["f", "i"], id="uid", patient="patient", split="set", indication="why")
EXPECTED = {
    "train": [("007", "p1", "a.png", "Heart large. Edema.", "Cough")],
    "val": [("008", "p1", "b.png", "Normal.", "")],
    "test": [("009", "p2", "c.png", "No effusion.\nClear.", "")],
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "images").mkdir()
    for number, name in enumerate("abc"):
        Image.new("L", (8, 8), 50 * (number + 1)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def module(root, table="t.csv", columns=COLUMNS, split="column", **settings):
    return TableDataModule(table, columns, str(root), "images", split=split, **settings)


def summary(splits):
    return {
        name: [(s.id, s.patient, s.views[0].image.name, s.report, s.indication) for s in part]
        for name, part in splits.items()
    }


def write_csv(path, rows=ROWS, delimiter=",", index=False, encoding="utf-8"):
    text = io.StringIO()
    if index:  # as pandas writes a frame
        rows = [{"": number, **row} for number, row in enumerate(rows)]
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))


def write(root, name):
    path = root / name
    if name.endswith(".csv"):
        write_csv(path, index=True, encoding="utf-8-sig")
    elif name == "t.csv.gz":
        write_csv(root / "plain.csv")
        path.write_bytes(gzip.compress((root / "plain.csv").read_bytes()))
    elif name == "t.tsv":
        write_csv(path, delimiter="\t")
    elif name == "list.json":
        path.write_text(json.dumps([{**row, "other": [1, "x"]} for row in ROWS]))
    elif name == "t.jsonl":
        path.write_text("".join(json.dumps({**row, "f": row["f"] or None}) + "\n" for row in ROWS))
    elif name == "t.parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    elif name == "folder":
        path.mkdir()
        datasets.Dataset.from_list(ROWS).to_parquet(path / "data.parquet")
    elif name == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return name


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
        ("a.png|b.png", "PA, LAT", "1 rows have more or fewer positions in 'views' than images, so that"),
        ("a.png|b.png", "PA", "1 rows have more or fewer positions in 'views' than images, so that"),
        ("a.png", "PA|LAT", "1 rows have more or fewer positions in 'views' than images, so that"),
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


def test_a_broken_image_in_the_table_is_named(root):
    table = datasets.Dataset.from_dict(
        {"x": [b"no image"]}, features=datasets.Features({"x": datasets.Value("binary")})
    )
    table.to_parquet(root / "t.parquet")
    view = module(root, "t.parquet", Columns("x"), "test").read()["test"][0].views[0]
    with pytest.raises(ImageReadError, match=r"^Image t\.parquet, row 1, x is not an image of a known format"):
        view.load()


def test_a_column_name_that_yaml_cuts_is_recognized(root):
    write_csv(root / "t.csv", [{"a": "a.png", "f": "Clear.", "Accession #": "1"}])
    with pytest.raises(DataError) as caught:
        module(root, columns=Columns("a", "f", id="Accession"), split="test").read()
    assert str(caught.value).endswith(
        "has no column 'Accession', only a, f, Accession #; correct data.init_args.columns. YAML takes the text after "
        '" #" for a comment: put the name in quotes, "Accession #".'
    )


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


def test_splits_that_are_not_known(root):
    write_csv(root / "t.csv", [{**row, "set": "fold 1" if k else "train"} for k, row in enumerate(ROWS)])
    with pytest.raises(DataError, match=r"the splits 'fold 1' \(2 studies\) are unknown; .*split_names"):
        module(root).read()
    splits = module(root, split_names={"fold 1": "test"}).read()
    assert [len(part) for part in splits.values()] == [1, 0, 2]
    skipping = module(root, split_names={"Fold 1": "skip"})
    assert [len(part) for part in skipping.read().values()] == [1, 0, 0]
    assert skipping.removed == {"a split that is skipped": 2}
    with pytest.raises(DataError, match=r"split_names maps 'fold 2', which no study has; it has 'train', 'fold"):
        module(root, split_names={"fold 1": "test", "fold 2": "val"}).read()
    with pytest.raises(DataError, match=r"has no splits: set data\.init_args\.split to column, random or"):
        module(root, columns=Columns("a", "f"), split="given").read()


def write_bytes(content):
    return lambda root: (root / "t.csv").write_bytes(content)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"uid,b,f\n1,a.png,x\n", ("no column 'a'", "only uid, b, f", "data.init_args.columns")),
        (b"uid;a;f\n1;a.png;x\n", ("semicolons", "data.init_args.delimiter")),
        (b"uid,a,f\n1,a.png,caf\xe9\n", ("not utf-8 text (at byte", "data.init_args.encoding")),
        (b"uid,a,f\n1,a.png,x,y\n", ("names 3 columns, but its first row has 4 fields",)),
        (b"uid,a,f\n1,a.png,x\n2,a.png,x,y\n", ("cannot be read", "Expected 3 fields in line 3, saw 4")),
        (b'uid,a,f\n1,a.png,"x\n', ("cannot be read", "EOF inside string")),
        (b"uid,a,f\n1,a.png,x\n2,a.png\n", ("cannot be read", "Expected 3 fields in line 3, saw 2")),
        (  # an open quote, which another row of the file closes: pandas made two rows of four
            b'uid,a,f\n1,a.png,"Left effusion.\n2,b.png,Clear lungs.\n3,c.png,"Heart large."\n4,c.png,Edema.\n',
            ("cannot be read", "row that starts at line 2: ',' expected after"),
        ),
        (
            b"uid,a,f\n1,a.png,Left effusion.\rNo edema.\n2,b.png,Clear lungs.\n",
            ("Expected 3 fields in line 3, saw 1",),
        ),
        (b"uid,a,f\n", ("has no rows",)),
        (b"", ("has no rows",)),
        (b"uid,a,f\n1,a.png,x\n1,b.png,x\n", ("1 of its studies occur in more than one row", "row to image")),
        (b"uid,a,f\n,a.png,x\n", ("1 of its studies have no 'uid': row 1",)),
    ],
)
def test_a_bad_csv_is_one_line(root, content, parts):
    (root / "t.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        module(root, columns=Columns("a", "f", id="uid"), split="test").read()
    line = str(caught.value)
    assert "t.csv" in line
    assert "\n" not in line
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("t.json", b'{"a": 1}', "a list of studies, or an object of studies by id"),
        ("t.json", b'[{"a": "a.png"', "cannot be read (Expecting"),
        ("t.json", b"[]", "has no rows"),
        ("t.jsonl", b'{"a": "a.png", "f": "x"}\n{"a": \n', "line 2 is not JSON"),
        ("t.jsonl", b'{"a": "a.png", "f": "\xff"}\n', "is not utf-8 text"),
        ("t.jsonl", b'{"b": 1}\n', "no column 'a' and no column 'f', only b"),
        ("t.parquet", b"PAR1", "cannot be read"),
        ("t.csv.gz", b"not gzip", "cannot be read"),
        ("t.xlsx", b"", "a file name that ends in .csv"),
    ],
)
def test_other_bad_tables_are_one_line(root, name, content, part):
    (root / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        module(root, name, Columns("a", "f"), "test").read()
    assert name in str(caught.value)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_latin_1_and_other_delimiters(root):
    write_csv(root / "t.csv", [{"a": "a.png", "f": "Épanchement."}], delimiter=";", encoding="latin-1")
    data = module(root, columns=Columns("a", "f"), split="test", encoding="latin-1", delimiter=";")
    assert data.read()["test"][0].report == "Épanchement."


def test_a_table_that_does_not_exist(root):
    with pytest.raises(DataNotFoundError, match=r"/t\.csv does not exist; check data\.init_args\.root and"):
        module(root).read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"row": "view"}, "argument `row` to be one of 'study', 'image', but got 'view'"),
        ({"split": "fold"}, "argument `split` to be one of 'given', 'column', 'random', 'test'"),
        ({"row": "image", "columns": Columns("a")}, "need data.init_args.columns.id"),
        ({"split": "column", "columns": Columns("a")}, "needs data.init_args.columns.split"),
        ({"split_names": {"x": "dev"}}, "map to train, val, test or skip, not dev"),
        ({"val_fraction": 1.0}, "data.init_args.val_fraction"),
        ({"positions": ["PA"]}, "data.init_args.positions to be of frontal, lateral and ''"),
    ],
)
def test_settings_that_cannot_be(root, settings, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        module(root, **settings)


def test_patterns(root):
    write_csv(root / "t.csv")
    with pytest.raises(ValueError, match=r"columns\.id_pattern '\(' is not a regular expression"):
        module(root, columns=Columns("a", "f", id="uid", id_pattern="("), split="test").read()
    with pytest.raises(DataError, match=r"3 of its studies have a 'uid' that .*id_pattern does not match: 007"):
        module(root, columns=Columns("a", "f", id="uid", id_pattern="x"), split="test").read()


def test_a_row_that_contradicts_an_earlier_one_of_its_study(root, caplog):
    write_csv(root / "t.csv", [{"s": "1", "a": "a.png", "f": "One."}, {"s": "1", "a": "b.png", "f": "Two."}])
    study = module(root, columns=Columns("a", "f", id="s"), split="test", row="image").read()["test"][0]
    assert (study.report, len(study.views)) == ("One.", 2)
    assert "1 rows have another report than an earlier row of their study" in caplog.text


def test_a_study_of_two_patients_is_an_error(root):
    """Splits and leakage are by patient, so that it must not be that of the first row."""
    write_csv(root / "t.csv", [{"s": "1", "a": f"{p}.png", "p": p, "f": "Clear."} for p in "ab"])
    columns = Columns("a", "f", id="s", patient="p")
    with pytest.raises(DataError, match=r"t\.csv: 1 of its studies are of more than one patient: 1\."):
        module(root, columns=columns, split="test", row="image").read()


@pytest.mark.parametrize("value", [["Heart large.", "No effusion."], {"findings": "Heart large."}])
def test_a_report_that_is_no_text_is_an_error(root, value):
    """Its notation, with brackets and quotes, is no report."""
    datasets.Dataset.from_list([{"a": "a.png", "f": value}]).to_parquet(root / "t.parquet")
    kind = type(value).__name__
    with pytest.raises(DataError, match=f"1 of its studies have no text in 'f', but a {kind}: row 1"):
        module(root, "t.parquet", Columns("a", "f"), "test").read()


def test_a_report_that_only_one_row_of_a_study_has(root):
    rows = [{"s": "1", "a": "a.png", "f": "", "w": "Cough"}, {"s": "1", "a": "b.png", "f": "Two.", "w": ""}]
    write_csv(root / "t.csv", rows)
    columns = Columns("a", "f", id="s", indication="w")
    study = module(root, columns=columns, split="test", row="image").read()["test"][0]
    assert (study.report, study.indication) == ("Two.", "Cough")


def test_a_table_without_rows(root):
    features = datasets.Features({"a": datasets.Value("string"), "f": datasets.Value("string")})
    datasets.Dataset.from_dict({"a": [], "f": []}, features=features).to_parquet(root / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet cannot be read \(.*corresponds to no data"):
        module(root, "t.parquet", Columns("a", "f"), "test").read()


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


def test_a_damaged_file_in_a_folder(root):
    (root / "files").mkdir()
    (root / "files" / "train.csv").write_text('a,f\na.png,x\nb.png,"y\n')
    with pytest.raises(DataError, match=r"files cannot be read \(the row that starts at line 3: EOF"):
        module(root, "files", Columns("a", "f"), "given").read()


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


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("t.json", '{"s1": {"a": "a.png", "f": "x"}, "s1": {"a": "b.png", "f": "y"}}', "s1"),
        ("t.json", '[{"a": "a.png", "f": "x", "f": "y"}]', "f"),
        ("t.jsonl", '{"a": "a.png", "f": "x", "f": "y"}\n', "f"),
    ],
)
def test_a_repeated_key_is_an_error(root, name, content, key):
    (root / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}.*the key '{key}' occurs more than once"):
        module(root, name, Columns("a", "f"), "test").read()
