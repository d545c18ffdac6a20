"""MIMIC-CXR: radiographs and free-text reports of the Beth Israel Deaconess Medical Center (credentialed access).

    report_root/files/p10/p10000032/s50414267.txt               MIMIC-CXR: mimic-cxr-reports.zip, unpacked
    image_root/files/p10/p10000032/s50414267/<dicom_id>.jpg     MIMIC-CXR-JPG
    image_root/mimic-cxr-2.0.0-split.csv.gz, -metadata.csv.gz   and optionally -chexpert.csv.gz

or, instead of reports and tables, R2Gen's annotation.json with the same images. Source: Johnson et al., Scientific Data
2019; Johnson et al., arXiv 1901.07042 (JPG); Chen et al., EMNLP 2020 (R2Gen).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mrg.datamodules.base import ReportDataModule, check_choices
from mrg.datamodules.errors import DataError, DataNotFoundError, first_names
from mrg.datamodules.mimic.rows import NO_FILE, NOT_UTF8, open_annotation, open_official, patients_folder
from mrg.datamodules.mimic.sections import RULES, SOURCES
from mrg.datamodules.mimic.studies import MIMICReader, Selection, select
from mrg.datamodules.mimic.tables import PUBLISHED_AT, find_table, read_table
from mrg.datamodules.study import SPLITS, StudyTable
from mrg.errors import UserError
from mrg.log import log
from mrg.metrics.conditions import BLANK, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN

if TYPE_CHECKING:
    from datasets import Dataset

OFFICIAL_COUNTS = {"train": 222_758, "val": 1_808, "test": 3_269}
"""Numbers of studies in the official split before filters."""

R2GEN_COUNTS = {"train": 270_790, "val": 2_130, "test": 3_858}
"""Numbers of items in R2Gen's annotation, each of one image: a study with two images counts twice."""

REPORTS_PUBLISHED_AT = "https://physionet.org/content/mimic-cxr/"

_CHEXPERT = {"": BLANK} | {
    text: label
    for value, label in (("1", POSITIVE), ("0", NEGATIVE), ("-1", UNCERTAIN))
    for text in (value, f"{value}.0")
}


class MIMICDataModule(ReportDataModule):
    """Data module of MIMIC-CXR, in the published layout or in R2Gen's.

    The content of the files is gathered once into an index on disk, see `mrg.datamodules.mimic.index`.

    Args:
        image_root: Folder of MIMIC-CXR-JPG, or the folder in it that holds p10 to p19.
        report_root: Folder with the unpacked reports of MIMIC-CXR; empty for `image_root`.
        tables: Folder with the tables; empty to look in `image_root` and `report_root`.
        annotation: R2Gen's annotation.json or its folder. Its items, reports and split are then used unchanged, without
            `report_root`, `tables` and the filters below.
        index: Folder of the index; empty for a folder in `~/.cache/mrg`.
        positions: View positions that a study must have, in order of preference, as in the metadata table.
        laterals: Use the lateral views of these studies, too; frontal and lateral views alternate.
        sections: Sections of the report: `"findings"`, `"impression"`, or `"both"` joined by a space.
        headerless: Whether studies whose report has neither section are left out (`"drop"`) or their text is used
            (`"use"`).
        min_words: Minimum number of words of a report.
        prior: Add the patient's latest earlier study with a view in `positions`.
        missing: Whether a missing image or report file is an error (`"raise"`) or is left out and counted (`"skip"`).
        **kwargs: Arguments of `ReportDataModule`.

    Attributes:
        sections_found: Number of reports of the index by source and rule, see `mrg.datamodules.mimic.sections`.
    """

    def __init__(
        self,
        image_root: str,
        report_root: str = "",
        tables: str = "",
        annotation: str = "",
        index: str = "",
        positions: Sequence[str] = ("PA", "AP"),
        laterals: bool = False,
        sections: Literal["findings", "impression", "both"] = "findings",
        headerless: Literal["drop", "use"] = "drop",
        min_words: int = 3,
        prior: bool = False,
        missing: Literal["raise", "skip"] = "raise",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choices(MIMICDataModule.__init__, locals())
        if not positions or isinstance(positions, str):
            raise UserError(f"Expected data.init_args.positions to be a list such as [PA, AP], but got {positions!r}.")
        if min_words < 1:
            raise UserError(f"Expected data.init_args.min_words to be at least 1, but got {min_words}.")
        if annotation and (prior or sections != "findings"):
            raise UserError(
                "data.init_args.annotation has findings only and no times: remove "
                f"{'prior' if sections == 'findings' else 'sections'}, or remove annotation to read the published "
                "tables and reports."
            )
        self.image_root = Path(image_root).expanduser()
        self.report_root = Path(report_root).expanduser() if report_root else self.image_root
        self.tables, self.annotation, self.index = tables, annotation, index
        self.positions = tuple(position.upper() for position in positions)
        self.laterals, self.sections, self.headerless = laterals, sections, headerless
        self.min_words, self.prior, self.missing = min_words, prior, missing
        self.sections_found: dict[str, int] = {}
        self.listed: dict[str, int] = {}
        self.most_images = self.cut = 0
        self._opened: tuple[Dataset, Path] | None = None

    def prepare_data(self) -> None:
        """Build the index; Lightning calls this on the first rank only."""
        self._opened = self._open()

    def read(self) -> dict[str, StudyTable]:
        """Read the three splits.

        Raises:
            DataNotFoundError: If a folder, a table or a file is missing.
            DataError: If a table or the annotation cannot be used, or no study of a split passes the filters.
            UserError: If the index cannot be written.
        """
        table, images = self._opened = self._opened or self._open()
        if self.annotation:
            reader, min_words = MIMICReader(images, ()), 1
        else:
            reader = MIMICReader(images, self.positions, self.laterals, self.sections, self.headerless == "use")
            min_words = self.min_words
        # `data check` lists the missing files at which a run would stop.
        keep = self.checking and self.missing == "raise"
        reader = dataclasses.replace(reader, keep_missing=keep)
        found = select(table, reader, min_words, SPLITS)
        if not keep:
            self._check_missing(found, images)
            self.dropped["missing skip"] = list(found.missing)
        self.listed, self.most_images = {split: found.listed[split] for split in SPLITS}, found.most_images
        self.cut = found.cut
        if self.cut:
            log.warning(
                f"MIMIC-CXR: {self.cut:,} reports have neither findings nor impression, but several sections under "
                "other headers, such as LUNGS: only the last of them is used, as by the published parser. "
                "data.init_args.headerless drop leaves such reports out."
            )
        self.removed = dict(sum(found.removed.values(), Counter[str]()).most_common())
        known = (*SOURCES, NO_FILE, *RULES, NOT_UTF8)
        self.sections_found = {name: found.sections[name] for name in known if found.sections[name]}
        for split in SPLITS:
            if self.listed[split] and not len(found.rows[split]):
                reasons = ", ".join(f"{name!r} removed {count:,}" for name, count in found.removed[split].most_common())
                raise DataError(
                    f"No study of split {split!r} is left of {self.listed[split]:,}: {reasons}; change these "
                    "filters in data.init_args."
                )
        return {
            split: StudyTable(table, found.rows[split], reader, found.priors[split] if self.prior else None)
            for split in SPLITS
        }

    def describe(self) -> str:
        """Describe the protocol in one line, because published test sets range from 1,624 to 3,858 studies."""
        self.setup()
        counts = ", ".join(f"{split} {len(studies):,}" for split, studies in self.splits.items())
        counts += self.describe_subset()
        if self.annotation:
            images = "one image" if self.most_images == 1 else f"up to {self.most_images} images"
            text = f"MIMIC-CXR, R2Gen's annotation, {images} per item: {counts}"
            return text if self.listed == R2GEN_COUNTS else f"{text}; {_deviation(self.listed, R2GEN_COUNTS)}"
        filters = [
            "findings and impression" if self.sections == "both" else self.sections,
            f"views {' or '.join(self.positions)}{' and laterals' if self.laterals else ''}",
            f"at least {self.min_words} words",
            *(["reports without headers unchanged"] if self.headerless == "use" else []),
            *(["with prior studies"] if self.prior else []),
        ]
        text = f"MIMIC-CXR, official split, {', '.join(filters)}: {counts}"
        if self.cut:
            text += f"; only the last section of {self.cut:,} reports under unknown headers"
        if self.removed:
            text += f"; left out: {', '.join(f'{name} {count:,}' for name, count in self.removed.items())}"
        return text if self.listed == OFFICIAL_COUNTS else f"{text}; {_deviation(self.listed, OFFICIAL_COUNTS)}"

    def chexpert_labels(self, split: str) -> Tensor:
        """The published CheXpert labels of a split.

        Returns:
            (N, 14) label classes of `mrg.metrics.conditions`; all blank for studies that are not in the table.

        Raises:
            DataNotFoundError: If the table mimic-cxr-2.0.0-chexpert.csv.gz does not exist.
            DataError: If it cannot be used.
        """
        self.setup()
        file = find_table(self._table_folders(), "chexpert")
        table = read_table(file, ("study_id", *CONDITIONS))
        columns = []
        for name in CONDITIONS:
            values = table[name].to_pylist()
            unknown = sorted(set(values) - set(_CHEXPERT))
            if unknown:
                raise DataError(f"File {file}, column {name}: expected 1, 0, -1 or nothing, but got {unknown[0]!r}.")
            columns.append([_CHEXPERT[value] for value in values])
        rows = dict(zip(table["study_id"].to_pylist(), zip(*columns, strict=True), strict=True))
        blank = (BLANK,) * len(CONDITIONS)
        return torch.tensor([rows.get(study.id, blank) for study in self.splits[split]]).view(-1, len(CONDITIONS))

    def _open(self) -> tuple[Dataset, Path]:
        """Open the index; also returns the folder to which its image paths are relative."""
        images = patients_folder(self.image_root, "image_root", "JPG images", PUBLISHED_AT)
        if self.annotation:
            file = Path(self.annotation).expanduser()
            file = file / "annotation.json" if file.is_dir() else file
            try:
                return open_annotation(self._index_folder(file, images), file, images), images
            except (DataError, DataNotFoundError) as error:
                message = str(error).replace("data.init_args.root", "data.init_args.annotation")
                raise type(error)(message) from None
        reports = patients_folder(self.report_root, "report_root", "reports", REPORTS_PUBLISHED_AT)
        folders = self._table_folders()
        split, metadata = find_table(folders, "split"), find_table(folders, "metadata")
        return open_official(self._index_folder(reports, images), reports, images, split, metadata), images

    def _table_folders(self) -> list[Path]:
        if self.tables:
            return [Path(self.tables).expanduser()]
        roots = (self.image_root, self.report_root)
        # A root may be the folder `files`, next to the tables.
        return list(dict.fromkeys([*roots, *(root.resolve().parent for root in roots if root.name == "files")]))

    def _index_folder(self, source: Path, images: Path) -> Path:
        if self.index:
            return Path(self.index).expanduser()
        name = hashlib.sha256(f"{source.resolve()}\n{images.resolve()}".encode()).hexdigest()[:12]
        return Path.home() / ".cache" / "mrg" / f"mimic-{name}"

    def _check_missing(self, found: Selection, images: Path) -> None:
        if not found.missing:
            return
        num_reports = sum(name.endswith(".txt") for name in found.missing)
        counts = {"image file": len(found.missing) - num_reports, "report file": num_reports}
        counted = " and ".join(f"{n:,} {name}{'s' * (n > 1)}" for name, n in counts.items() if n)
        if self.missing == "raise":
            raise DataNotFoundError(
                f"MIMIC-CXR lacks {counted} in {images} or {self.report_root}: {first_names(found.missing)}; complete "
                "them, or set `data.init_args.missing` to skip to leave them out."
            )
        log.warning(f"MIMIC-CXR: leaving out {counted} that do not exist: {first_names(found.missing)}.")


def _deviation(found: dict[str, int], published: dict[str, int]) -> str:
    expected, got = (", ".join(f"{split} {n:,}" for split, n in counts.items()) for counts in (published, found))
    return f"lists {got}, not the published {expected}: results cannot be compared with published ones"
