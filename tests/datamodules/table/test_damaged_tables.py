"""What is wrong with a table is one line."""

import datasets
import pytest

from mrg.datamodules.errors import DataError, DataNotFoundError, ImageReadError
from mrg.datamodules.table import Columns
from tests.datamodules.table.table_files import ROWS, module, write_csv


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


def test_a_row_that_contradicts_an_earlier_one_of_its_study(root, caplog):
    write_csv(root / "t.csv", [{"s": "1", "a": "a.png", "f": "One."}, {"s": "1", "a": "b.png", "f": "Two."}])
    study = module(root, columns=Columns("a", "f", id="s"), split="test", row="image").read()["test"][0]
    assert (study.report, len(study.views)) == ("One.", 2)
    assert "1 row has another report than an earlier row of the study" in caplog.text


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


def test_a_damaged_file_in_a_folder(root):
    (root / "files").mkdir()
    (root / "files" / "train.csv").write_text('a,f\na.png,x\nb.png,"y\n')
    with pytest.raises(DataError, match=r"files cannot be read \(the row that starts at line 3: EOF"):
        module(root, "files", Columns("a", "f"), "given").read()


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
