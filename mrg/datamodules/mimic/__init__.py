"""MIMIC-CXR: radiographs and free-text reports of the Beth Israel Deaconess Medical Center, credentialed access.

    report_root/files/p10/p10000032/s50414267.txt               MIMIC-CXR: mimic-cxr-reports.zip, unpacked
    image_root/files/p10/p10000032/s50414267/<dicom_id>.jpg     MIMIC-CXR-JPG
    image_root/mimic-cxr-2.0.0-split.csv.gz, -metadata.csv.gz   and, where wanted, -chexpert.csv.gz

or, instead of reports and tables, R2Gen's annotation.json over the same images. Source: Johnson et al., Scientific Data
2019; Johnson et al., arXiv 1901.07042 (JPG); Chen et al., EMNLP 2020 (R2Gen).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mrg.datamodules.annotation import SPLITS, AnnotationError, DataNotFoundError
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.mimic.index import NO_FILE, NOT_UTF8, open_annotation, open_official, patients_folder
from mrg.datamodules.mimic.sections import RULES, SOURCES
from mrg.datamodules.mimic.studies import MIMICReader, Selection, select
from mrg.datamodules.mimic.tables import PUBLISHED_AT, find_table, read_table
from mrg.datamodules.study_table import StudyTable
from mrg.errors import UserError
from mrg.metrics.conditions import BLANK, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN

if TYPE_CHECKING:
    from datasets import Dataset

OFFICIAL_COUNTS = {"train": 222_758, "val": 1_808, "test": 3_269}
"""Studies of the official split before any filter."""

R2GEN_COUNTS = {"train": 270_790, "val": 2_130, "test": 3_858}
"""Items of R2Gen's annotation, each of one image: a study with two counts twice."""

REPORTS_PUBLISHED_AT = "https://physionet.org/content/mimic-cxr/"

_NUM_LISTED = 5
_CHEXPERT = {
    "": BLANK,
    "1.0": POSITIVE,
    "0.0": NEGATIVE,
    "-1.0": UNCERTAIN,
    "1": POSITIVE,
    "0": NEGATIVE,
    "-1": UNCERTAIN,
}

_log = logging.getLogger(__name__)


class MIMICDataModule(ReportDataModule):
    """MIMIC-CXR in the published layout, or in R2Gen's, as a data module.

    What the files hold is gathered once into an index on disk; see `mrg.datamodules.mimic.index`.

    Args:
        image_root: Folder of MIMIC-CXR-JPG, or the folder in it that holds p10 to p19.
        report_root: Folder of the unpacked reports of MIMIC-CXR; empty where it is `image_root`.
        tables: Folder of the tables; empty looks in `image_root` and `report_root`.
        annotation: R2Gen's annotation.json, or its folder. Its items, reports and split are then taken as they are, and
            `report_root`, `tables` and the filters below have no part in it.
        index: Folder in which the index is kept; empty keeps it in a folder of its own in `~/.cache/mrg`.
        positions: The views around which a study is made, in the order of preference; as in the metadata table.
        laterals: Take lateral views of these studies as well: first a frontal view, then a lateral one, in turn.
        sections: What the report is: `"findings"`, `"impression"`, or `"both"` with a space between them.
        headerless: Of reports with neither section: `"drop"` leaves the studies out, `"use"` takes what text there is.
        min_words: Shortest report in words.
        prior: Give each study the latest earlier one of its patient that has a view in `positions`.
        missing: Whether a missing image or report file is an error (`"raise"`) or is left out and counted (`"skip"`).
        **kwargs: See `ReportDataModule`.

    Attributes:
        sections_found: How many reports of the index were read from what source, and by what rules; see
            `mrg.datamodules.mimic.sections`.
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
        choices = (
            ("sections", sections, ("findings", "impression", "both")),
            ("headerless", headerless, ("drop", "use")),
            ("missing", missing, ("raise", "skip")),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                expected = " or ".join(map(repr, allowed))
                raise UserError(f"Expected data.init_args.{name} to be {expected}, but got {value!r}.")
        if not positions or isinstance(positions, str):
            raise UserError(f"Expected data.init_args.positions to be a list such as [PA, AP], but got {positions!r}.")
        if min_words < 1:
            raise UserError(f"Expected data.init_args.min_words to be at least 1, but got {min_words}.")
        out_of_place = [
            name for name, set_ in (("sections", sections != "findings"), ("prior", prior)) if annotation and set_
        ]
        if out_of_place:
            raise UserError(
                f"data.init_args.annotation takes reports as they are, and has no times: remove {out_of_place[0]}, "
                "or remove annotation to read the published tables and reports."
            )
        self.image_root = Path(image_root).expanduser()
        self.report_root = Path(report_root).expanduser() if report_root else self.image_root
        self.tables, self.annotation, self.index = tables, annotation, index
        self.positions = tuple(position.upper() for position in positions)
        self.laterals, self.sections, self.headerless = laterals, sections, headerless
        self.min_words, self.prior, self.missing = min_words, prior, missing
        self.sections_found: dict[str, int] = {}
        self.listed: dict[str, int] = {}
        self.most_images = 0
        self._opened: tuple[Dataset, Path] | None = None

    def prepare_data(self) -> None:
        """Make the index, on the first rank alone."""
        self._opened = self._open()

    def read(self) -> dict[str, StudyTable]:
        """Read the three splits.

        Raises:
            DataNotFoundError: If a folder, a table or a file is missing.
            AnnotationError: If a table or the annotation cannot be used, or the filters leave nothing of a split.
            ValueError: If the index cannot be written.
        """
        table, images = self._opened = self._opened or self._open()
        if self.annotation:
            reader, min_words = MIMICReader(images, ()), 1
        else:
            reader = MIMICReader(images, self.positions, self.laterals, self.sections, self.headerless == "use")
            min_words = self.min_words
        # `data check` lists what is missing itself, where a run would stop at it.
        keep = bool(getattr(self, "checking", False)) and self.missing == "raise"
        reader = dataclasses.replace(reader, keep_missing=keep)
        found = select(table, reader, min_words, SPLITS)
        if not keep:
            self._check_missing(found, images)
            self.dropped["missing skip"] = list(found.missing)
        self.listed, self.most_images = {split: found.listed[split] for split in SPLITS}, found.most_images
        self.removed = dict(sum(found.removed.values(), Counter[str]()).most_common())
        known = (*SOURCES, NO_FILE, *RULES, NOT_UTF8)
        self.sections_found = {name: found.sections[name] for name in known if found.sections[name]}
        for split in SPLITS:
            if self.listed[split] and not len(found.rows[split]):
                reasons = ", ".join(f"{name!r} took {count:,}" for name, count in found.removed[split].most_common())
                raise AnnotationError(
                    f"No study of split {split!r} is left of {self.listed[split]:,}: {reasons}; change the settings in "
                    "data.init_args that these filters come from."
                )
        return {
            split: StudyTable(table, found.rows[split], reader, found.priors[split] if self.prior else None)
            for split in SPLITS
        }

    def describe(self) -> str:
        """Say what was read, by which protocol: published test sets run from 1,624 to 3,858 studies."""
        self.setup()
        counts = ", ".join(f"{split} {len(studies):,}" for split, studies in self.splits.items()) + self.drawn()
        if self.annotation:
            images = "one image" if self.most_images == 1 else f"up to {self.most_images} images"
            text = f"MIMIC-CXR, R2Gen's annotation, {images} per item: {counts}"
            return text if self.listed == R2GEN_COUNTS else f"{text}; {_deviation(self.listed, R2GEN_COUNTS)}"
        filters = [
            "findings and impression" if self.sections == "both" else self.sections,
            f"views {' or '.join(self.positions)}{' and laterals' if self.laterals else ''}",
            f"at least {self.min_words} words",
            *(["reports without headers as they are"] if self.headerless == "use" else []),
            *(["with prior studies"] if self.prior else []),
        ]
        text = f"MIMIC-CXR, official split, {', '.join(filters)}: {counts}"
        if self.removed:
            text += f"; left out: {', '.join(f'{name} {count:,}' for name, count in self.removed.items())}"
        return text if self.listed == OFFICIAL_COUNTS else f"{text}; {_deviation(self.listed, OFFICIAL_COUNTS)}"

    def chexpert_labels(self, split: str) -> Tensor:
        """The published CheXpert labels of a split: (N, 14) classes as in `mrg.metrics.conditions`.

        A study that the table does not have is blank throughout.

        Raises:
            DataNotFoundError: If there is no table mimic-cxr-2.0.0-chexpert.csv.gz.
            AnnotationError: If it cannot be used.
        """
        self.setup()
        file = find_table(self._table_folders(), "chexpert")
        table = read_table(file, ("study_id", *CONDITIONS))
        columns = []
        for name in CONDITIONS:
            values = table[name].to_pylist()
            unknown = sorted(set(values) - set(_CHEXPERT))
            if unknown:
                raise AnnotationError(
                    f"File {file}, column {name}: expected 1, 0, -1 or nothing, but got {unknown[0]!r}."
                )
            columns.append([_CHEXPERT[value] for value in values])
        rows = dict(zip(table["study_id"].to_pylist(), zip(*columns, strict=True), strict=True))
        blank = (BLANK,) * len(CONDITIONS)
        return torch.tensor([rows.get(study.id, blank) for study in self.splits[split]]).view(-1, len(CONDITIONS))

    def _open(self) -> tuple[Dataset, Path]:
        """The index, and the folder to which its image paths are relative."""
        images = patients_folder(self.image_root, "image_root", "JPG images", PUBLISHED_AT)
        if self.annotation:
            file = Path(self.annotation).expanduser()
            file = file / "annotation.json" if file.is_dir() else file
            try:
                return open_annotation(self._index_folder(file, images), file, images), images
            except (AnnotationError, DataNotFoundError) as error:
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
        # A root may be the folder `files` itself, beside which the tables lie.
        return list(dict.fromkeys([*roots, *(root.resolve().parent for root in roots if root.name == "files")]))

    def _index_folder(self, source: Path, images: Path) -> Path:
        if self.index:
            return Path(self.index).expanduser()
        name = hashlib.sha256(f"{source.resolve()}\n{images.resolve()}".encode()).hexdigest()[:12]
        return Path.home() / ".cache" / "mrg" / f"mimic-{name}"

    def _check_missing(self, found: Selection, images: Path) -> None:
        if not found.missing:
            return
        first = ", ".join(found.missing[:_NUM_LISTED]) + (", …" if len(found.missing) > _NUM_LISTED else "")
        num_reports = sum(name.endswith(".txt") for name in found.missing)
        counts = {"image file": len(found.missing) - num_reports, "report file": num_reports}
        counted = " and ".join(f"{n:,} {name}{'s' * (n > 1)}" for name, n in counts.items() if n)
        if self.missing == "raise":
            raise DataNotFoundError(
                f"MIMIC-CXR lacks {counted} in {images} or {self.report_root}: {first}; complete them, or set "
                "`data.init_args.missing` to skip in order to go on without them."
            )
        _log.warning("MIMIC-CXR goes on without %s that are not there: %s.", counted, first)


def _deviation(found: dict[str, int], published: dict[str, int]) -> str:
    expected, got = (", ".join(f"{split} {n:,}" for split, n in counts.items()) for counts in (published, found))
    return f"lists {got}, not the published {expected}: results cannot be compared with published ones"
