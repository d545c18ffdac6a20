"""Files of one small table, in every form."""

import csv
import gzip
import io
import json

import datasets

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
