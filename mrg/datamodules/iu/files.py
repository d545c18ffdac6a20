"""The files of IU X-Ray: which published form a folder holds, and the records read from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from mrg.datamodules.errors import DataError, DataNotFoundError, first_names
from mrg.datamodules.iu.kaggle import KAGGLE_SOURCE, read_kaggle
from mrg.datamodules.iu.openi import OPENI_SOURCE, read_openi
from mrg.datamodules.iu.record import IURecord, Sections, patient_of
from mrg.datamodules.r2gen import SOURCE, Item, read_items
from mrg.datamodules.study import SPLITS
from mrg.log import log

Form = Literal["annotation", "openi", "kaggle"]

SOURCES = {"annotation": SOURCE, "openi": OPENI_SOURCE, "kaggle": KAGGLE_SOURCE}

_XML = ("NLMCXR_reports.tgz", "NLMCXR_reports.tar.gz", "NLMCXR_reports.tar", "NLMCXR_reports", "ecgen-radiology")
_CSV = "indiana_reports.csv"
_PROJECTIONS = "indiana_projections.csv"
_IMAGES = {
    "annotation": ("images",),
    "openi": ("NLMCXR_png", "images/images_normalized", "images_normalized", "images"),
    "kaggle": ("images/images_normalized", "images_normalized", "images", "NLMCXR_png"),
}


@dataclasses.dataclass(frozen=True)
class IUFiles:
    """Paths of the parts of the data set.

    Args:
        form: Form from which the studies are read.
        annotation: R2Gen's file, which may not exist; the split of all forms can be taken from it.
        reports: XML reports (archive or folder) or table of reports, if there are any.
        projections: Table of projections, if there is one.
        images: Folder with the images.
    """

    form: Form
    annotation: Path
    reports: Path | None
    projections: Path | None
    images: Path

    @property
    def main(self) -> Path:
        """The file from which the studies are read."""
        return self.annotation if self.form == "annotation" or self.reports is None else self.reports

    def read_reports(self) -> list[IURecord]:
        """Read all reports.

        Raises:
            DataNotFoundError: If a file is missing.
            DataError: If a file cannot be used.
        """
        assert self.reports is not None
        if self.reports.suffix.lower() == ".csv":
            needed = None if self.form == "annotation" else self.reports.with_name(_PROJECTIONS)
            return read_kaggle(self.reports, self.projections or needed)
        return read_openi(self.reports)


def find_files(
    root: Path,
    form: Literal["auto", "annotation", "openi", "kaggle"] = "auto",
    annotation: str = "annotation.json",
    reports: str = "",
    images: str = "",
) -> IUFiles:
    """Find the parts of the data set in a folder.

    The form `"auto"` is the annotation if it is next to the folder images/ that it lists, otherwise the XML reports,
    otherwise the tables, otherwise the annotation.

    Args:
        root: Folder of the data set.
        form: Form from which the studies are read, or `"auto"`.
        annotation: Name of the annotation file in `root`.
        reports: Name of the XML archive or folder, or of the table, in `root`; empty for the published names.
        images: Name of the image folder in `root`; empty for the published names.

    Raises:
        DataNotFoundError: If the folder or the requested form does not exist.
    """
    if not root.is_dir():
        finding = "is not a folder" if root.exists() else "does not exist"
        raise DataNotFoundError(
            f"Folder {root} {finding}; set `data.init_args.root` to the folder that holds {annotation} and the images "
            f"(published at {SOURCE}), or the files of Open-I or Kaggle."
        )
    if reports and not (root / reports).exists():
        raise DataNotFoundError(f"{root / reports} does not exist; set `data.init_args.reports` to a name in {root}.")
    xml = _first_of(root, _XML if not reports else () if reports.lower().endswith(".csv") else (reports,))
    table = _first_of(root, (_CSV,) if not reports else (reports,) if reports.lower().endswith(".csv") else ())
    known = _infer(root, root / annotation, images, xml, table) if form == "auto" else form
    found = {"annotation": xml or table, "openi": xml, "kaggle": table}[known]
    if known != "annotation" and found is None:
        wanted = f"{_XML[0]}, nor a folder {_XML[-2]} or {_XML[-1]}" if known == "openi" else f"{_CSV}"
        raise DataNotFoundError(
            f"Folder {root} holds no {wanted}; set `data.init_args.root` to the folder that does (published at "
            f"{SOURCES[known]}), or name the file with `data.init_args.reports`."
        )
    folder = root / images if images else _first_of(root, _IMAGES[known]) or root / _IMAGES[known][0]
    return IUFiles(known, root / annotation, found, _first_of(root, (_PROJECTIONS,)), folder)


def _first_of(root: Path, names: Iterable[str]) -> Path | None:
    return next((root / name for name in names if (root / name).exists()), None)


def _infer(root: Path, annotation: Path, images: str, xml: Path | None, table: Path | None) -> Form:
    folder = root / (images or "images")
    listed = annotation.is_file() and folder.is_dir() and not (folder / "images_normalized").exists()
    if listed or (xml is None and table is None):
        return "annotation"
    return "openi" if xml else "kaggle"


def read_listed(
    files: IUFiles, sections: Sections = "findings", empty_reports: Literal["raise", "keep"] = "raise"
) -> dict[str, list[IURecord]]:
    """Read the annotation, with indication, MeSH and impression from the XML reports or the table if there are any.

    Findings are the annotation's reports. If the impression is requested, they come from the collection's reports, too,
    because some copies of the annotation hold both in one text.

    Args:
        files: Paths of the parts.
        sections: Sections of the report.
        empty_reports: Whether an empty report of the annotation is an error; only for `"findings"`.

    Returns:
        The records of `"train"`, `"val"` and `"test"`, whose images are the listed paths.

    Raises:
        DataNotFoundError: If a file is missing, or there is nothing from which to read a requested impression.
        DataError: If a file cannot be used, or none of the listed studies is among the reports.
    """
    items = read_items(files.annotation, empty_reports if sections == "findings" else "keep")
    if files.reports is None:
        if sections != "findings":
            raise DataNotFoundError(
                f"File {files.annotation} holds findings only; to read impressions, add NLMCXR_reports.tgz or "
                "indiana_reports.csv to its folder, or set `data.init_args.sections` to findings."
            )
        return {split: [_from_item(item) for item in items[split]] for split in SPLITS}
    reports = {record.patient: record for record in files.read_reports()}
    every = [item for split in SPLITS for item in items[split]]
    _warn_of_unknown([item.id for item in every if patient_of(item.id) not in reports], len(every), files)
    pairs = [(item, reports[patient_of(item.id)]) for item in every if patient_of(item.id) in reports]
    num_other = sum(item.report != record.findings for item, record in pairs)
    if num_other:
        log.warning(
            f"File {files.annotation}: the reports of {num_other} of {len(pairs)} studies are not the findings of "
            f"{files.reports}."
        )
    return {
        split: [_join(item, reports.get(patient_of(item.id)), sections) for item in items[split]] for split in SPLITS
    }


def select_listed(records: Sequence[IURecord], files: IUFiles) -> dict[str, list[IURecord]]:
    """Select the records that the annotation lists, in its order; only its ids are used.

    Raises:
        DataNotFoundError: If there is no annotation.
        DataError: If it cannot be used, or none of its ids is among the records.
    """
    if not files.annotation.is_file():
        raise DataNotFoundError(
            f"File {files.annotation} does not exist, but R2Gen's split is listed only there; copy it there, or set "
            "`data.init_args.split` to patient or test."
        )
    items = read_items(files.annotation, "keep")
    by_id = {record.id: record for record in records}
    every = [item.id for split in SPLITS for item in items[split]]
    _warn_of_unknown([name for name in every if name not in by_id], len(every), files)
    return {split: [by_id[item.id] for item in items[split] if item.id in by_id] for split in SPLITS}


def _warn_of_unknown(unknown: Sequence[str], num_listed: int, files: IUFiles) -> None:
    if not unknown:
        return
    finding = f"{len(unknown)} of the {num_listed} studies are not in {files.reports}: {first_names(unknown)}"
    if len(unknown) == num_listed:
        raise DataError(
            f"File {files.annotation}: {finding}; expected ids such as CXR12_IM-0001; copy both files again, or remove "
            "the one that belongs to another data set."
        )
    log.warning(f"File {files.annotation}: {finding}.")


def _from_item(item: Item) -> IURecord:
    return IURecord(item.id, patient_of(item.id), item.image_path, item.report)


def _join(item: Item, record: IURecord | None, sections: Sections) -> IURecord:
    if record is None:
        return _from_item(item) if sections == "findings" else dataclasses.replace(_from_item(item), findings="")
    findings = item.report if sections == "findings" else record.findings
    return dataclasses.replace(record, id=item.id, images=item.image_path, findings=findings)
