import logging
from collections import Counter
from pathlib import Path

import pytest

from mrg.datamodules.errors import DataError, DataNotFoundError
from mrg.datamodules.iu.kaggle import read_kaggle, read_projections
from mrg.datamodules.iu.openi import read_openi
from mrg.datamodules.iu.record import IURecord
from tests.iu_collection import write_openi, write_tables
from tests.refusals import refused


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tables(tmp_path)
    return tmp_path


def _read(root: Path) -> list[IURecord]:
    return read_kaggle(root / "indiana_reports.csv", root / "indiana_projections.csv")


def _refused(root: Path, error: type[Exception] = DataError) -> str:
    return refused(lambda: _read(root), error, root)


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_records_are_those_of_the_xml_files(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_openi(root)
    with caplog.at_level(logging.WARNING):
        records = {record.patient: record for record in _read(root)}
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "1 fields that a spreadsheet has overwritten are read as empty."
    ]
    xml = {record.patient: record for record in read_openi(root / "NLMCXR_reports.tgz")}
    assert xml.keys() - records.keys() == {"CXR5"}  # the one without images
    differing = {patient for patient, record in records.items() if record != xml[patient]}
    assert differing == {"CXR6", "CXR10"}  # an image that is not listed, an indication that begins with a sign
    assert records["CXR6"].images == ("CXR6_IM-0060-1001-0001", "CXR6_IM-0060-2001")
    assert records["CXR10"].indication == ""
    assert records["CXR1"].id == "CXR1_1_IM-0001"


def test_reports_without_the_table_of_projections(root: Path) -> None:
    records = read_kaggle(root / "indiana_reports.csv", None)
    assert [(record.id, record.images) for record in records[:2]] == [("CXR1", ()), ("CXR2", ())]
    assert records[0].findings == "The lungs are clear."


def test_positions_are_in_text_order_of_the_names(root: Path) -> None:
    positions = read_projections(root / "indiana_projections.csv")
    assert list(positions["CXR2"].items()) == [
        ("CXR2_IM-0020-12012", "frontal"),
        ("CXR2_IM-0020-2001", "lateral"),
        ("CXR2_IM-0020-3001", "frontal"),
    ]
    assert positions["CXR1"] == {"CXR1_1_IM-0001-3001": "lateral", "CXR1_1_IM-0001-4001": "frontal"}


def test_a_projection_of_another_name_is_no_position(root: Path) -> None:
    _replace(root / "indiana_projections.csv", "3,3_IM-0030-1001.dcm.png,Frontal", "3,3_IM-0030-1001.dcm.png,Oblique")
    assert read_projections(root / "indiana_projections.csv")["CXR3"] == {"CXR3_IM-0030-1001": ""}


def test_missing_files(root: Path) -> None:
    (root / "indiana_projections.csv").unlink()
    assert "indiana_projections.csv does not exist; copy it again (published at https://www.kaggle" in _refused(
        root, DataNotFoundError
    )
    (root / "indiana_reports.csv").unlink()
    assert "indiana_reports.csv does not exist; copy it again" in _refused(root, DataNotFoundError)


@pytest.mark.parametrize("column", ["uid", "MeSH", "indication", "findings", "impression"])
def test_a_missing_column(root: Path, column: str) -> None:
    _replace(root / "indiana_reports.csv", column, column + "_text")
    message = _refused(root)
    assert f"indiana_reports.csv has no column {column}, only ['uid" in message
    assert "; copy it again (published at" in message


def test_a_table_cut_in_a_row(root: Path) -> None:
    file = root / "indiana_reports.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:3]) + "\n3,normal,normal,PA")
    assert "expected 8 fields in each row, but line 4 ends a row of fewer; copy it again" in _refused(root)
    file.write_text("\n".join(lines[:2]) + "\n" + lines[2] + ",more\n")
    assert "expected 8 fields in each row, but line 3 ends a row of more; copy it again" in _refused(root)
    file.write_text("\n".join(lines[:2]) + '\n3,normal,"normal')
    assert "is not a CSV table in UTF-8 (unexpected end of data); copy it again" in _refused(root)
    file.write_text("")
    assert "has no column uid, MeSH, findings, impression, indication, only []; copy it again" in _refused(root)


def test_wrong_encodings(root: Path) -> None:
    file = root / "indiana_reports.csv"
    text = file.read_text()
    file.write_text(text, encoding="utf-8-sig")
    assert len(_read(root)) == 7
    for encoding in ("latin-1", "utf-16"):
        file.write_text(text.replace("clear", "cl\xe9ar"), encoding=encoding)
        assert "indiana_reports.csv is not a CSV table in UTF-8 (" in _refused(root)


def test_a_semicolon_table_has_none_of_the_columns(root: Path) -> None:
    file = root / "indiana_reports.csv"
    file.write_text(file.read_text().replace(",", ";"))
    assert "has no column uid, MeSH, findings, impression, indication, only ['uid;MeSH;" in _refused(root)


def test_ids_that_are_none_or_come_twice(root: Path) -> None:
    file = root / "indiana_reports.csv"
    text = file.read_text()
    _replace(file, "\n2,", "\nCXR2,")
    assert "expected 'uid' to be a number, but got 'CXR2'; copy it again" in _refused(root)
    file.write_text(text.replace("\n2,", "\n3,"))
    assert "the uid 3 occurs more than once; keep one row of it." in _refused(root)


def test_what_is_listed_twice_is_no_last_one_that_wins(root: Path) -> None:
    file = root / "indiana_projections.csv"
    text = file.read_text()
    row = text.splitlines()[1]
    uid, name, position = row.split(",")
    file.write_text(f"{text.rstrip()}\n{row}\n")
    assert len(_read(root)) == 7  # an equal row changes nothing
    other = "Lateral" if position == "Frontal" else "Frontal"
    file.write_text(f"{text.rstrip()}\n{uid},{name},{other}\n")
    assert "with two positions; keep one row of it." in _refused(root)
    file.write_text(text.replace("uid,filename,projection", "uid,filename,uid", 1))
    assert "has more than one column 'uid'; " in _refused(root)


def test_tables_that_do_not_belong_together(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = root / "indiana_projections.csv"
    file.write_text(file.read_text() + "99,99_IM-0001-1001.dcm.png,Frontal\n")
    with caplog.at_level(logging.WARNING):
        assert len(_read(root)) == 7
    assert f"1 studies are not in {root / 'indiana_reports.csv'}: CXR99." in caplog.text
    file.write_text("uid,filename,projection\n99,99_IM-0001-1001.dcm.png,Frontal\n")
    assert "have no uid in common (CXR1, CXR2, CXR3, CXR4, CXR6, … against CXR99); copy both again" in _refused(root)


@pytest.fixture(scope="module")
def real(iu_root: Path) -> list[IURecord]:
    return _read(iu_root)


def test_real_tables(real: list[IURecord]) -> None:
    assert len(real) == 3851
    assert sum(not record.findings for record in real) == 514
    assert sum(not record.impression for record in real) == 31
    assert sum(not record.findings and not record.impression for record in real) == 25
    assert sum(record.normal for record in real) == 1379
    assert sum(len(record.images) for record in real) == 7466
    assert sum(bool(record.findings) and len(record.images) >= 2 for record in real) == 2955


def test_real_projections(iu_root: Path) -> None:
    positions = read_projections(iu_root / "indiana_projections.csv")
    assert Counter(p for listed in positions.values() for p in listed.values()) == {"frontal": 3818, "lateral": 3648}


def test_real_records_are_those_of_the_xml_files(real: list[IURecord], iu_xml: list[IURecord]) -> None:
    xml = {record.patient: record for record in iu_xml}
    differing = [record for record in real if record != xml[record.patient]]
    images = {record.patient for record in differing if record.images != xml[record.patient].images}
    assert images == {"CXR2084", "CXR2560", "CXR3809"}  # four of their images are not in the table
    others = {record.patient for record in differing} - images
    assert others == {"CXR1555", "CXR3477", "CXR3784"}  # indications that a spreadsheet has spoilt
    assert all(record.id == xml[record.patient].id for record in real)
