"""IU X-Ray (Open-I), from each form in which it is published; all three give the same studies.

    annotation   annotation.json, images/<id>/0.png, 1.png                                  R2Gen
    openi        NLMCXR_reports.tgz (XML), NLMCXR_png/CXR12_IM-0001-3001.png                Open-I, the original
    kaggle       indiana_reports.csv, indiana_projections.csv, images/images_normalized/    Kaggle

Source: Demner-Fushman et al., JAMIA 2016 (the collection); Chen et al., EMNLP 2020 (R2Gen: the first layout and the
split). R2Gen's studies are the reports with findings and at least two images, of which it uses the first two. No rule
is known for its split. It is not random: 307 of its 590 test studies are normal, which has a chance below 1e-16 in a
random split. It is therefore always taken from the list in `annotation.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mrg.datamodules.base import ReportDataModule, check_choices
from mrg.datamodules.errors import DataError, first_names
from mrg.datamodules.images.read import ImageFinder
from mrg.datamodules.iu.files import SOURCES, IUFiles, find_files, read_listed, select_listed
from mrg.datamodules.iu.kaggle import read_projections
from mrg.datamodules.iu.record import IURecord, Sections, join_sections, listed_first, section_texts, to_study
from mrg.datamodules.r2gen import SOURCE
from mrg.datamodules.study import SPLITS, Study, all_as_test, leakage_free, split_by_patient
from mrg.errors import UserError
from mrg.log import log

R2GEN_COUNTS = {"train": 2069, "val": 296, "test": 590}

_BY_FILE_ORDER = (
    "positions by file order (first view frontal, second lateral: wrong in one of eight studies of the collection)"
)


class IUXRayDataModule(ReportDataModule):
    """Data module of IU X-Ray.

    Args:
        root: Folder with the reports and the images.
        form: Form from which the studies are read; `"auto"` detects it by its files.
        annotation: Name of the annotation file in `root`, which lists R2Gen's split for all forms.
        reports: Name of the XML archive or folder, or of the table of reports, in `root`; empty for the published
            names. With the form `"annotation"` it adds indications and, if requested, impressions.
        images: Name of the image folder in `root`; empty for the published names.
        sections: Sections of the report: `"findings"`, `"impression"`, or `"both"` joined by a space.
        split: `"annotation"` for R2Gen's split, `"patient"` for a random split by patient, `"test"` to use all studies
            as test studies.
        split_seed: Random seed of the split by patient.
        split_fractions: Fractions of train, val and test in the split by patient.
        min_images: Minimum number of images per study; None for R2Gen's rule: 2, or 1 for an annotation, to which the
            rule was already applied.
        max_images: Maximum number of images per study, 0 for all; None for R2Gen's rule: 2, or 0 for an annotation.
        variant: For R2Gen's split, `"r2gen"` requires the published counts 2069/296/590; `"any"` warns if they differ.
        empty_reports: Whether a study with an empty or missing report in an annotation is left out and counted
            (`"drop"`) or an error (`"raise"`). The 530 original reports without findings are always left out.
        deidentified: Treatment of the token `XXXX` in training reports: keep it, or drop the token or the sentence that
            contains it; references of validation and test, and indications, stay as written.
        test_subset: `"all"`, or `"leakage_free"` for the test studies whose report does not occur in train.
        **kwargs: Arguments of `ReportDataModule`.
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
        empty_reports: Literal["drop", "raise"] = "drop",
        deidentified: Literal["keep", "drop_token", "drop_sentence"] = "keep",
        test_subset: Literal["all", "leakage_free"] = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choices(IUXRayDataModule.__init__, locals())
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
            DataError: If a file cannot be used, its counts are not those of the required variant, or no study is left.
        """
        files = find_files(self.root, self.form, self.annotation, self.reports, self.images)
        groups = self._read_groups(files)
        by_rule = files.form != "annotation"
        min_images = (2 if by_rule else 1) if self.min_images is None else self.min_images
        max_images = (2 if by_rule else 0) if self.max_images is None else self.max_images
        kept, removed = count_and_drop(groups, self.sections, min_images)
        self.removed |= removed
        self._check_left(kept, files)
        splits = self._split(_make_studies(kept, files, self.sections, max_images, require_images=not self.checking))
        if self.test_subset == "leakage_free":
            num_test = len(splits["test"])
            splits["test"] = leakage_free(splits["test"], splits["train"])
            self.removed["report that occurs in train"] = num_test - len(splits["test"])
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
        """Describe in one line the form, the variant, and what was left out."""
        self.setup()
        return self._description + self.describe_subset()

    def _read_groups(self, files: IUFiles) -> dict[str, list[IURecord]]:
        """Records by split if the annotation gives it, otherwise in one group."""
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
            raise DataError(
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
            raise DataError(
                f"Split {', '.join(map(repr, empty))} has no study: {len(studies['all'])} studies are too few for "
                f"data.init_args.split_fractions {list(self.split_fractions)}; use more studies or larger fractions."
            )
        return splits

    def _removed(self) -> str:
        return ", ".join(f"{count} with {reason}" for reason, count in self.removed.items() if count)

    def _describe(self, files: IUFiles, splits: Mapping[str, Sequence[Study]]) -> str:
        counts = ", ".join(f"{name} {len(studies)}" for name, studies in splits.items())
        split = {
            "annotation": self._variant + ("" if counts in self._variant else f", of which {counts} are used"),
            "patient": f"by patient, seed {self.split_seed} ({counts})",
            "test": f"all as test ({len(splits['test'])})",
        }[self.split]
        return "; ".join(
            [
                f"IU X-Ray, form {files.form}: {split}",
                "findings and impression" if self.sections == "both" else self.sections,
                _BY_FILE_ORDER if files.projections is None else f"positions from {files.projections.name}",
                f"indications from {files.reports.name}" if files.reports else "no indications",
                f"left out: {self._removed() or 'none'}",
            ]
        )


def count_and_drop(
    groups: Mapping[str, Sequence[IURecord]], sections: Sections, min_images: int
) -> tuple[dict[str, list[IURecord]], dict[str, int]]:
    """Leave out records that lack a requested section or have too few images.

    Returns:
        The remaining records of each group, and the number that each filter removed; a record counts for the first
        filter that it fails.
    """
    wanted = ("findings", "impression") if sections == "both" else (sections,)
    removed = {f"no {name}": 0 for name in wanted} | {f"fewer than {min_images} images": 0}
    kept: dict[str, list[IURecord]] = {name: [] for name in groups}
    for name, records in groups.items():
        for record in records:
            empty = next((section for section in wanted if not getattr(record, section).strip()), None)
            if empty:
                removed[f"no {empty}"] += 1
            elif len(record.images) < min_images:
                removed[f"fewer than {min_images} images"] += 1
            else:
                kept[name].append(record)
    return kept, {reason: count for reason, count in removed.items() if count}


def _make_studies(
    groups: Mapping[str, Sequence[IURecord]], files: IUFiles, sections: Sections, max_images: int, require_images: bool
) -> dict[str, list[Study]]:
    """Studies by split or any other group; images are looked up, but not opened."""
    positions = None if files.projections is None else read_projections(files.projections)
    if positions is None:
        log.warning(f"IU X-Ray: {files.main.parent} contains no indiana_projections.csv; {_BY_FILE_ORDER}.")
    finder = ImageFinder(files.images)
    studies: dict[str, list[Study]] = {}
    for name, records in groups.items():
        studies[name] = []
        for record in records:
            if positions is not None and files.form == "openi":
                record = listed_first(record, positions)
            record = dataclasses.replace(record, images=record.images[: max_images or None])
            studies[name].append(to_study(record, sections, positions, finder, files.form == "kaggle"))
    if require_images:
        finder.check(
            files.main,
            f"set `data.init_args.root` to the folder that holds {files.images.name}/, or complete the images from "
            f"{SOURCES[files.form]}",
        )
    every = [study for members in studies.values() for study in members]
    if positions is not None and every and all(study.patient not in positions for study in every):
        raise DataError(
            f"File {files.projections} lists none of the {len(every)} studies of {files.main} (it has "
            f"{first_names(list(positions))}, they are {first_names([study.id for study in every])}); copy it again, "
            "or remove it to continue without view positions."
        )
    return studies


def describe_variant(splits: Mapping[str, Sequence[object]]) -> str:
    """Name the published variant of the data set by the numbers of its studies."""
    counts = {split: len(splits.get(split, ())) for split in SPLITS}
    text = ", ".join(f"{split} {count}" for split, count in counts.items())
    return f"R2Gen split ({text})" if counts == R2GEN_COUNTS else f"unknown variant with counts {text}"


def check_variant(splits: Mapping[str, Sequence[object]], variant: Literal["r2gen", "any"] = "any") -> None:
    """Compare the numbers of studies with those of R2Gen's split, on which published results are based.

    Args:
        splits: Studies by split.
        variant: `"any"` logs a warning if the numbers differ, `"r2gen"` raises an error.

    Raises:
        DataError: If the numbers differ and `variant` is `"r2gen"`.
    """
    if all(len(splits.get(split, ())) == count for split, count in R2GEN_COUNTS.items()):
        return
    expected = ", ".join(f"{split} {count}" for split, count in R2GEN_COUNTS.items())
    found = f"IU X-Ray is an {describe_variant(splits)}, but the R2Gen split has {expected}"
    if variant == "r2gen":
        raise DataError(
            f"{found}; set `data.init_args.root` to the data of {SOURCE}, or `data.init_args.variant` to any."
        )
    log.warning(f"{found}: results cannot be compared with published ones.")
