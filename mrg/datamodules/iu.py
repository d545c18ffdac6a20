"""IU X-Ray (Open-I) in the R2Gen layout: `annotation.json` and a folder of images -> `Study`.

    root/annotation.json             {"train": [{"id", "report", "image_path": ["<id>/0.png", ...]}, ...], "val": ...}
    root/images/<id>/0.png, 1.png    or any other extension and number of views
    root/indiana_projections.csv     optional: says which image is frontal and which lateral

Source: Demner-Fushman et al., JAMIA 2016 (the collection); Chen et al., EMNLP 2020 (R2Gen: the layout and the split).
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mrg.datamodules.annotation import SOURCE, SPLITS, AnnotationError, ImageFinder, Item, read_items
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.study import Study, View

R2GEN_COUNTS = {"train": 2069, "val": 296, "test": 590}
DEIDENTIFIED = "XXXX"

_PROJECTIONS = "indiana_projections.csv"
_PROJECTIONS_REMEDY = "copy it again, or remove it to go on without view positions"
_POSITIONS = {"Frontal": "frontal", "Lateral": "lateral"}

_log = logging.getLogger(__name__)


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
    file = Path(root) / annotation
    items = read_items(file, empty_reports)
    positions = _read_positions(Path(root) / _PROJECTIONS)
    finder = ImageFinder(Path(root) / images)
    splits = {
        split: [_study(item, finder, positions.get(item.id.split("_")[0], {})) for item in items[split]]
        for split in SPLITS
    }
    if missing_images == "raise":
        finder.check(file)
    return splits


def describe_variant(splits: Mapping[str, Sequence[Study]]) -> str:
    """Say which published variant of the data set the counts of studies belong to."""
    counts = {split: len(splits.get(split, ())) for split in SPLITS}
    text = ", ".join(f"{split} {count}" for split, count in counts.items())
    return f"R2Gen split ({text})" if counts == R2GEN_COUNTS else f"unknown variant with counts {text}"


def check_variant(splits: Mapping[str, Sequence[Study]], variant: Literal["r2gen", "any"] = "any") -> None:
    """Compare the counts of studies with those of the R2Gen split, on which published figures rest.

    Args:
        splits: Studies by split.
        variant: `"any"` logs one warning where the counts differ, `"r2gen"` makes a difference an error.

    Raises:
        AnnotationError: If the counts differ and `variant` is `"r2gen"`.
    """
    if variant not in ("r2gen", "any"):
        raise ValueError(f"Expected argument `variant` to be 'r2gen' or 'any', but got {variant!r}.")
    if all(len(splits.get(split, ())) == count for split, count in R2GEN_COUNTS.items()):
        return
    expected = ", ".join(f"{split} {count}" for split, count in R2GEN_COUNTS.items())
    found = f"IU X-Ray is an {describe_variant(splits)}, but the R2Gen split has {expected}"
    if variant == "r2gen":
        raise AnnotationError(
            f"{found}; set `data.init_args.root` to the data of {SOURCE}, or `data.init_args.variant` to any."
        )
    _log.warning("%s: results cannot be compared with published ones.", found)


def leakage_free(test: Sequence[Study], train: Sequence[Study]) -> list[Study]:
    """Keep the test studies whose report does not occur in train, letter case and white space aside.

    Repeating a training report word for word scores full marks on all others.
    """
    seen = {_fold(study.report) for study in train}
    return [study for study in test if _fold(study.report) not in seen]


def clean_target(report: str, deidentified: Literal["keep", "drop_token", "drop_sentence"] = "keep") -> str:
    """Treat the de-identification token `XXXX` in a text that a policy is trained to write.

    For training targets only: a reference from which text is removed is no longer the reference of other papers.

    Args:
        report: A report as written; without the token it is returned unchanged.
        deidentified: `"keep"`; `"drop_token"` removes the words that hold the token and the punctuation then left over;
            `"drop_sentence"` removes the sentences that hold it.

    Returns:
        The target, which is empty where nothing but the token or such sentences was written.
    """
    if deidentified not in ("keep", "drop_token", "drop_sentence"):
        raise ValueError(
            f"Expected argument `deidentified` to be 'keep', 'drop_token' or 'drop_sentence', but got {deidentified!r}."
        )
    if deidentified == "keep" or DEIDENTIFIED not in report:
        return report
    if deidentified == "drop_sentence":
        # A full stop also ends a sentence where the space behind it was forgotten, but not behind the number of a list.
        sentences = re.split(r"(?<=[.!?])(?<!\b\d\.)\s+|(?<=[a-zX]\.)(?=[A-Z][a-z])", report.strip())
        return " ".join(sentence for sentence in sentences if DEIDENTIFIED not in sentence)
    text = re.sub(rf"[\w'-]*{DEIDENTIFIED}[\w'-]*", "", report)
    text = re.sub(r"(?<!\w)/|/(?!\w)|\(\W*\)", "", text)
    text = re.sub(r"\s+(?=[.,;:!?)](\D|$))|(?<=\()\s+", "", text)
    text = re.sub(r"[.,;:!?](\s*[.,;:!?])+(?=\s|$)", _strongest, text)
    return " ".join(text.split()).lstrip(".,;:!? ")


def _strongest(run: re.Match[str]) -> str:
    return next((mark for mark in run[0] if mark in ".!?"), run[0][0])


def _fold(report: str) -> str:
    return " ".join(report.casefold().split())


def _read_positions(file: Path) -> dict[str, dict[str, str]]:
    """Read file stem -> position for each patient id (`CXR12`), in the order in which R2Gen numbered the images.

    That order is the file names' as text. It was checked on the images: where a name sorts otherwise as a number
    (12012 before 2001) and where the table lists fewer images than the original report, text order is the right one.
    """
    if not file.is_file():
        return {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns, rows = reader.fieldnames or [], list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(f"File {file} is not a CSV table ({error}); {_PROJECTIONS_REMEDY}.") from None
    absent = [name for name in ("uid", "filename", "projection") if name not in columns]
    if absent:
        raise AnnotationError(f"File {file} has no column {', '.join(absent)}, only {columns}; {_PROJECTIONS_REMEDY}.")
    positions: dict[str, dict[str, str]] = {}
    for stem, row in sorted(((_stem(row), row) for row in rows), key=lambda pair: pair[0]):
        positions.setdefault(f"CXR{row['uid']}", {})[stem] = _POSITIONS.get(row["projection"], "")
    return positions


def _stem(row: Mapping[str, str]) -> str:
    return str(row["filename"]).removesuffix(".png").removesuffix(".dcm")


def _study(item: Item, finder: ImageFinder, positions: Mapping[str, str]) -> Study:
    views = tuple(View(finder.find(path), _position(PurePosixPath(path).stem, positions)) for path in item.image_path)
    return Study(id=item.id, views=views, report=item.report)


def _position(stem: str, positions: Mapping[str, str]) -> str:
    """Position of an image named as in the collection (`CXR1_IM-0001-3001`) or numbered within its study (`0`)."""
    if stem.isdecimal():
        ordered = list(positions.values())
        return ordered[int(stem)] if int(stem) < len(ordered) else ""
    return positions.get(stem.removeprefix("CXR"), "")


class IUXRayDataModule(ReportDataModule):
    """IU X-Ray in the R2Gen layout as a data module.

    Args:
        root: Folder that holds the annotation and the images.
        annotation: Name of the annotation file in `root`.
        images: Name of the image folder in `root`.
        variant: `"r2gen"` insists on the published counts 2069/296/590; `"any"` warns where they differ.
        empty_reports: Whether an empty report is an error (`"raise"`) or leaves its study out (`"drop"`).
        deidentified: What happens to the token `XXXX` in the reports of the *training* split, see `clean_target`;
            references of validation and test stay as written.
        test_subset: `"all"`, or `"leakage_free"` for the test studies whose report does not stand in train.
        **kwargs: See `ReportDataModule`.
    """

    def __init__(
        self,
        root: str,
        annotation: str = "annotation.json",
        images: str = "images",
        variant: Literal["r2gen", "any"] = "r2gen",
        empty_reports: Literal["raise", "drop"] = "raise",
        deidentified: Literal["keep", "drop_token", "drop_sentence"] = "keep",
        test_subset: Literal["all", "leakage_free"] = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if test_subset not in ("all", "leakage_free"):
            raise ValueError(
                f"Expected data.init_args.test_subset to be 'all' or 'leakage_free', but got {test_subset!r}."
            )
        self.root = Path(root).expanduser()
        self.annotation, self.images = annotation, images
        self.variant, self.empty_reports = variant, empty_reports
        self.deidentified, self.test_subset = deidentified, test_subset

    def read(self) -> dict[str, list[Study]]:
        """Read the three splits.

        Raises:
            DataNotFoundError: If the folder, the annotation or an image is missing.
            AnnotationError: If the annotation cannot be used, or its counts are not those of the wanted variant.
        """
        missing: Literal["raise", "keep"] = "keep" if self.checking else "raise"
        splits = read_annotation(self.root, self.annotation, self.images, self.empty_reports, missing)
        check_variant(splits, self.variant)
        if self.test_subset == "leakage_free":
            splits["test"] = leakage_free(splits["test"], splits["train"])
        if self.checking:
            return splits
        splits["train"] = [
            # A report of nothing but de-identified sentences keeps them: an empty target would teach silence.
            dataclasses.replace(study, report=clean_target(study.report, self.deidentified) or study.report)
            for study in splits["train"]
        ]
        return splits
