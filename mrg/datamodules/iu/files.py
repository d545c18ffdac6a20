"""Which published form of IU X-Ray a folder holds, and where its parts are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from mrg.datamodules.annotation import SOURCE, DataNotFoundError
from mrg.datamodules.iu.kaggle import KAGGLE_SOURCE, read_kaggle
from mrg.datamodules.iu.openi import OPENI_SOURCE, read_openi
from mrg.datamodules.iu.record import IURecord
from mrg.errors import UserError

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
    """The parts of the data set.

    Args:
        form: What the studies are read from.
        annotation: R2Gen's file, whether it exists or not: all forms may take their split from it.
        reports: The XML reports (archive or folder) or the table of reports; None where there are none.
        projections: The table of projections; None where there is none.
        images: The folder of images.
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
        """Read the reports, in whichever form they are.

        Raises:
            DataNotFoundError: If a file is missing.
            AnnotationError: If a file cannot be used.
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
    """Find the parts in a folder.

    Without a form, the annotation is taken where it lies beside the folder images/ that it lists, otherwise the XML
    reports, otherwise the tables; an annotation alone is taken, too.

    Args:
        root: Folder of the data set.
        form: The form, or `"auto"`.
        annotation: Name of the annotation file in `root`.
        reports: Name of the XML archive or folder, or of the table, in `root`; empty looks for the published names.
        images: Name of the folder of images in `root`; empty looks for the published names.

    Raises:
        DataNotFoundError: If the folder or the wanted form is not there.
    """
    if form not in ("auto", *SOURCES):
        raise UserError(f"Expected data.init_args.form to be auto, annotation, openi or kaggle, but got {form!r}.")
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
