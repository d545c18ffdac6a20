"""IU X-Ray as published on Kaggle: a table of reports, a table of projections, and a folder of images.

    indiana_reports.csv       uid, MeSH, Problems, image, indication, comparison, findings, impression
    indiana_projections.csv   uid, filename (`12_IM-0001-3001.dcm.png`), projection (`Frontal` or `Lateral`)

Source: https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university. It has the 3,851 reports with images. Its
names are those of Open-I without `CXR`, except in study 1: `CXR1_1_IM-0001-3001` is `1_IM-0001-3001`. A spreadsheet has
turned three indications that start with a sign into `#NAME?`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mrg.datamodules.errors import DataError, DataNotFoundError, first_names
from mrg.datamodules.iu.record import IURecord, Positions, make_record
from mrg.datamodules.study import to_position
from mrg.log import log

KAGGLE_SOURCE = "https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university"

_SECTIONS = ("findings", "impression", "indication")
_SPREADSHEET_ERRORS = ("#NAME?", "#VALUE!", "#REF!", "#N/A")
_REMEDY = f"copy it again (published at {KAGGLE_SOURCE})"
_PROJECTIONS_REMEDY = "copy it again, or remove it to continue without view positions"


def read_kaggle(reports: Path, projections: Path | None) -> list[IURecord]:
    """Read both tables into one record per row of the reports, in their order.

    Args:
        reports: `indiana_reports.csv`.
        projections: `indiana_projections.csv`, which lists the images of each report; None reads only the reports.

    Raises:
        DataNotFoundError: If a file is missing.
        DataError: If a file is not such a table, repeats a report, or the tables have no id in common.
    """
    rows = _read_table(reports, ("uid", "MeSH", *_SECTIONS), _REMEDY)
    images = read_projections(projections, _REMEDY) if projections else {}
    records: dict[str, IURecord] = {}
    num_overwritten = 0
    for row in rows:
        patient = _patient(row, reports, _REMEDY)
        if patient in records:
            raise DataError(f"File {reports}: the uid {row['uid']} occurs more than once; keep one row of it.")
        num_overwritten += sum(row[name] in _SPREADSHEET_ERRORS for name in _SECTIONS)
        sections = {name: "" if row[name] in _SPREADSHEET_ERRORS else row[name] for name in _SECTIONS}
        records[patient] = make_record(patient, list(images.get(patient, ())), sections, row["MeSH"].split(";"))
    if num_overwritten:
        log.warning(f"File {reports}: {num_overwritten} fields that a spreadsheet has overwritten are read as empty.")
    if projections is None:
        return list(records.values())
    if not images.keys() & records.keys():
        raise DataError(
            f"Files {reports} and {projections} have no uid in common ({first_names(list(records))} against "
            f"{first_names(list(images))}); copy both again (published at {KAGGLE_SOURCE})."
        )
    unknown = [patient for patient in images if patient not in records]
    if unknown:
        log.warning(f"File {projections}: {len(unknown)} studies are not in {reports}: {first_names(unknown)}.")
    return list(records.values())


def read_projections(file: Path, remedy: str = _PROJECTIONS_REMEDY) -> Positions:
    """Read the position of each image, by patient (`CXR12`), in the order in which R2Gen numbered the images.

    That order is the text order of the file names. It was verified on images whose names sort differently as numbers
    (12012 before 2001), and on studies of which the table lists fewer images than the original report.

    Raises:
        DataNotFoundError: If the file is missing.
        DataError: If it is not such a table.
    """
    pairs = [
        (_image(row["filename"]), _patient(row, file, remedy), to_position(row["projection"]))
        for row in _read_table(file, ("uid", "filename", "projection"), remedy)
    ]
    positions: dict[str, dict[str, str]] = {}
    for image, patient, position in sorted(pairs):
        if positions.setdefault(patient, {}).setdefault(image, position) != position:
            raise DataError(f"File {file} lists the image {image} with two positions; keep one row of it.")
    return positions


def _image(filename: str) -> str:
    name = filename.removesuffix(".png").removesuffix(".dcm").removeprefix("CXR")
    return f"CXR1_{name}" if name.startswith("1_IM-") else f"CXR{name}"


def _patient(row: Mapping[str, str], file: Path, remedy: str) -> str:
    if not re.fullmatch("[0-9]{1,9}", row["uid"]):
        raise DataError(f"File {file}: expected 'uid' to be a number, but got {row['uid'][:40]!r}; {remedy}.")
    return f"CXR{int(row['uid'])}"


def _read_table(file: Path, columns: Sequence[str], remedy: str) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            found, rows = reader.fieldnames or [], []
            if repeated := sorted({name for name in found if found.count(name) > 1}):
                raise DataError(f"File {file} has more than one column {repeated[0]!r}; {remedy}.")
            for row in reader:
                # DictReader fills a short row with None, and stores extra fields under the key None.
                if None in row or None in row.values():
                    raise DataError(
                        f"File {file}: expected {len(found)} fields in each row, but line {reader.line_num} ends a row "
                        f"of {'more' if None in row else 'fewer'}; {remedy}."
                    )
                rows.append(row)
    except FileNotFoundError:
        raise DataNotFoundError(f"File {file} does not exist; {remedy}.") from None
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        raise DataError(f"File {file} is not a CSV table in UTF-8 ({error}); {remedy}.") from None
    absent = [name for name in columns if name not in found]
    if absent:
        raise DataError(f"File {file} has no column {', '.join(absent)}, only {list(found)}; {remedy}.")
    return rows
