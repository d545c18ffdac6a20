"""IU X-Ray (Open-I) from each form in which it is published -> `Study`; equal studies from all three.

    annotation   annotation.json, images/<id>/0.png, 1.png                                  R2Gen
    openi        NLMCXR_reports.tgz (XML), NLMCXR_png/CXR12_IM-0001-3001.png                Open-I, the original
    kaggle       indiana_reports.csv, indiana_projections.csv, images/images_normalized/    Kaggle

Source: Demner-Fushman et al., JAMIA 2016 (the collection); Chen et al., EMNLP 2020 (R2Gen: the first layout and the
split). R2Gen's studies are the reports with findings and at least two images, of which it has the first two. Its split
follows no rule that could be found: it is not a random one (the test split has 307 normal studies of 590, which a
random split has with a chance below 1e-16), so that it is always taken from the list in `annotation.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mrg.datamodules.annotation import SPLITS, AnnotationError, read_items
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.iu.files import IUFiles, find_files
from mrg.datamodules.iu.listed import read_listed, select_listed
from mrg.datamodules.iu.record import IURecord, join_sections, patient_of, section_texts
from mrg.datamodules.iu.studies import BY_FILE_ORDER, count_and_drop, make_studies
from mrg.datamodules.iu.variant import check_variant, describe_variant
from mrg.datamodules.leakage import leakage_free
from mrg.datamodules.splits import all_as_test, split_by_patient
from mrg.datamodules.study import Study
from mrg.errors import UserError


def read_annotation(
    root: Path,
    annotation: str = "annotation.json",
    images: str = "images",
    empty_reports: Literal["raise", "drop"] = "raise",
    missing_images: Literal["raise", "keep"] = "raise",
) -> dict[str, list[Study]]:
    """Read all studies in the order of the file; images are looked up but not opened, reports stay as written.

    An image that is not there under its listed name is taken with another extension (.png, .jpg, .jpeg) or case.

    Args:
        root: Folder of the data set.
        annotation: Name of the annotation file in `root`.
        images: Name of the folder in `root` to which image paths are relative.
        empty_reports: Whether an empty report is an error or its study is left out (with one warning).
        missing_images: Whether an image that is not there is an error or stays in its study as listed.

    Returns:
        The studies of `"train"`, `"val"` and `"test"`.

    Raises:
        DataNotFoundError: If the folder, the annotation or any of the images is missing.
        AnnotationError: If the annotation or the table of projections cannot be used.
    """
    files = find_files(Path(root), "annotation", annotation, images=images)
    items = read_items(files.annotation, empty_reports)
    return make_studies(
        {
            split: [IURecord(item.id, patient_of(item.id), item.image_path, item.report) for item in items[split]]
            for split in SPLITS
        },
        files,
        missing_images=missing_images,
    )


class IUXRayDataModule(ReportDataModule):
    """IU X-Ray as a data module.

    Args:
        root: Folder that holds the reports and the images.
        form: What the studies are read from: `"annotation"`, `"openi"`, `"kaggle"`, or `"auto"`, which looks at what is
            there (see `find_files`); `describe` says which it took.
        annotation: Name of the annotation file in `root`, with which all forms can take R2Gen's split.
        reports: Name of the XML archive or folder, or of the table of reports, in `root`; empty looks for the published
            names. With the form `"annotation"` it adds the indications, and the impressions where they are wanted.
        images: Name of the image folder in `root`; empty looks for the published names.
        sections: What the report is: `"findings"`, `"impression"`, or `"both"` with a space between them.
        split: `"annotation"` takes R2Gen's from the annotation file; `"patient"` is random by patient; `"test"` makes
            all studies test studies.
        split_seed: Another seed gives another split by patient.
        split_fractions: Shares of train, val and test in the split by patient.
        min_images: Leave out studies with fewer images; None is R2Gen's rule: 2, or 1 in an annotation, to which the
            rule was applied before.
        max_images: Take only the first so many images of a study, 0 takes all; None is R2Gen's rule: 2, or 0 in an
            annotation.
        variant: For R2Gen's split: `"r2gen"` insists on the published counts 2069/296/590; `"any"` warns where they
            differ.
        empty_reports: Whether an empty report in an annotation is an error (`"raise"`) or leaves its study out
            (`"drop"`). The original reports without findings are always left out: there are 530 of them.
        deidentified: What happens to the token `XXXX` in the reports of the *training* split, see `clean_target`;
            references of validation and test, and indications, stay as written.
        test_subset: `"all"`, or `"leakage_free"` for the test studies whose report does not stand in train.
        **kwargs: See `ReportDataModule`.
    """

    def __init__(
        self,
        root: str,
        form: Literal["auto", "annotation", "openi", "kaggle"] = "auto",
        annotation: str = "annotation.json",
        reports: str = "",
        images: str = "",
        sections: Literal["findings", "impression", "both"] = "findings",
        split: Literal["annotation", "patient", "test"] = "annotation",
        split_seed: int = 0,
        split_fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
        min_images: int | None = None,
        max_images: int | None = None,
        variant: Literal["r2gen", "any"] = "r2gen",
        empty_reports: Literal["raise", "drop"] = "raise",
        deidentified: Literal["keep", "drop_token", "drop_sentence"] = "keep",
        test_subset: Literal["all", "leakage_free"] = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, known in (
            ("sections", sections, ("findings", "impression", "both")),
            ("split", split, ("annotation", "patient", "test")),
            ("empty_reports", empty_reports, ("raise", "drop")),
            ("deidentified", deidentified, ("keep", "drop_token", "drop_sentence")),
            ("test_subset", test_subset, ("all", "leakage_free")),
        ):
            if value not in known:
                words = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
                raise UserError(f"Expected data.init_args.{name} to be {words}, but got {value!r}.")
        for name, number, least in (("min_images", min_images, 1), ("max_images", max_images, 0)):
            if number is not None and number < least:
                raise UserError(f"Expected data.init_args.{name} to be at least {least}, but got {number}.")
        self.root = Path(root).expanduser()
        self.form, self.annotation, self.reports, self.images = form, annotation, reports, images
        self.sections, self.split = sections, split
        self.split_seed, self.split_fractions = split_seed, split_fractions
        self.min_images, self.max_images = min_images, max_images
        self.variant, self.empty_reports = variant, empty_reports
        self.deidentified, self.test_subset = deidentified, test_subset
        self._variant, self._description = "", ""

    def read(self) -> dict[str, list[Study]]:
        """Read the three splits.

        Raises:
            DataNotFoundError: If the folder, a file or an image is missing.
            AnnotationError: If a file cannot be used, its counts are not those of the wanted variant, or no study is
                left.
        """
        files = find_files(self.root, self.form, self.annotation, self.reports, self.images)
        groups = self._read_groups(files)
        by_rule = files.form != "annotation"
        min_images = (2 if by_rule else 1) if self.min_images is None else self.min_images
        max_images = (2 if by_rule else 0) if self.max_images is None else self.max_images
        kept, removed = count_and_drop(groups, self.sections, min_images)
        self.removed |= removed
        self._check_left(kept, files)
        studies = make_studies(kept, files, self.sections, max_images, "keep" if self.checking else "raise")
        splits = self._split(studies)
        if self.test_subset == "leakage_free":
            num_test = len(splits["test"])
            splits["test"] = leakage_free(splits["test"], splits["train"])
            self.removed["report that stands in train"] = num_test - len(splits["test"])
        self._description = self._describe(files, splits)
        if self.checking:
            return splits
        texts = {record.id: section_texts(record, self.sections) for records in kept.values() for record in records}
        splits["train"] = [
            dataclasses.replace(study, report=join_sections(texts[study.id], self.deidentified))
            for study in splits["train"]
        ]
        return splits

    def describe(self) -> str:
        """Say in one line from what the studies were read, which variant they are, and what was left out."""
        self.setup()
        return self._description + self.drawn()

    def _read_groups(self, files: IUFiles) -> dict[str, list[IURecord]]:
        """Records by split where the annotation gives it, otherwise in one group."""
        self.removed = {}
        if files.form == "annotation":
            groups = read_listed(files, self.sections, "keep" if self.empty_reports == "drop" else "raise")
        else:
            records = files.read_reports()
            if self.split != "annotation":
                return {"all": records}
            groups = select_listed(records, files)
            self.removed[f"no place in the split of {self.annotation}"] = len(records) - sum(map(len, groups.values()))
        if self.split == "annotation":
            check_variant(groups, self.variant)
            self._variant = describe_variant(groups)
            return groups
        return {"all": [record for split in SPLITS for record in groups[split]]}

    def _check_left(self, kept: Mapping[str, Sequence[IURecord]], files: IUFiles) -> None:
        empty = [name for name, records in kept.items() if not records]
        if empty:
            what = "" if empty == ["all"] else f" of split {', '.join(map(repr, empty))}"
            raise AnnotationError(
                f"No study{what} in {files.main} is left: {self._removed() or 'none is listed'}; change "
                "`data.init_args.sections` or `data.init_args.min_images`, or set `data.init_args.root` to other data."
            )

    def _split(self, studies: Mapping[str, list[Study]]) -> dict[str, list[Study]]:
        if self.split == "annotation":
            return dict(studies)
        if self.split == "test":
            return all_as_test(studies["all"])
        first, second, third = self.split_fractions
        splits = split_by_patient(studies["all"], self.split_seed, (first, second, third))
        empty = [name for name, part in zip(SPLITS, self.split_fractions, strict=True) if part and not splits[name]]
        if empty:
            raise AnnotationError(
                f"Split {', '.join(map(repr, empty))} has no study: {len(studies['all'])} studies are too few for "
                f"data.init_args.split_fractions {list(self.split_fractions)}; use more studies or larger fractions."
            )
        return splits

    def _removed(self) -> str:
        return ", ".join(f"{count} with {reason}" for reason, count in self.removed.items() if count)

    def _describe(self, files: IUFiles, splits: Mapping[str, Sequence[Study]]) -> str:
        counts = ", ".join(f"{name} {len(studies)}" for name, studies in splits.items())
        if self.split == "annotation":
            split = self._variant + ("" if counts in self._variant else f", of which are left {counts}")
        else:
            split = (
                f"by patient, seed {self.split_seed} ({counts})"
                if self.split == "patient"
                else f"all as test ({len(splits['test'])})"
            )
        section = "findings and impression" if self.sections == "both" else self.sections
        return "; ".join(
            [
                f"IU X-Ray, form {files.form}: {split}",
                section,
                BY_FILE_ORDER if files.projections is None else f"positions from {files.projections.name}",
                f"indications from {files.reports.name}" if files.reports else "no indications",
                f"left out: {self._removed() or 'none'}",
            ]
        )
