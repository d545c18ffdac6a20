"""Records of IU X-Ray -> studies: filters, positions of the views, images looked up."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Literal

from mrg.datamodules.annotation import AnnotationError, ImageFinder, first_names
from mrg.datamodules.iu.files import SOURCES, IUFiles
from mrg.datamodules.iu.kaggle import read_projections
from mrg.datamodules.iu.record import IURecord, Sections, listed_first, to_study
from mrg.datamodules.study import Study

_log = logging.getLogger(__name__)

BY_FILE_ORDER = (
    "positions by file order (first view frontal, second lateral: wrong in one of eight studies of the collection)"
)


def count_and_drop(
    groups: Mapping[str, Sequence[IURecord]], sections: Sections, min_images: int
) -> tuple[dict[str, list[IURecord]], dict[str, int]]:
    """Leave out records that lack a wanted section or have too few images.

    Returns:
        What is left of each group, and what each filter took away; a record counts for the first that it fails.
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


def make_studies(
    groups: Mapping[str, Sequence[IURecord]],
    files: IUFiles,
    sections: Sections = "findings",
    max_images: int = 0,
    missing_images: Literal["raise", "keep"] = "raise",
) -> dict[str, list[Study]]:
    """Look up the images, which are not opened, and make the studies.

    Args:
        groups: Records by split, or by any other name.
        files: Where the table of projections and the images are.
        sections: What the report is made of.
        max_images: Take only the first so many images of a study; 0 takes all.
        missing_images: Whether an image that is not there is an error or stays in its study as listed.

    Raises:
        DataNotFoundError: If an image is missing.
        AnnotationError: If the table of projections cannot be used or is not about these studies.
    """
    positions = None if files.projections is None else read_projections(files.projections)
    if positions is None:
        _log.warning("IU X-Ray: there is no indiana_projections.csv beside %s; %s.", files.main, BY_FILE_ORDER)
    finder = ImageFinder(files.images)
    studies: dict[str, list[Study]] = {}
    for name, records in groups.items():
        studies[name] = []
        for record in records:
            if positions is not None and files.form == "openi":
                record = listed_first(record, positions)
            record = dataclasses.replace(record, images=record.images[: max_images or None])
            studies[name].append(to_study(record, sections, positions, finder, files.form == "kaggle"))
    if missing_images == "raise":
        finder.check(files.main, SOURCES[files.form])
    every = [study for members in studies.values() for study in members]
    if positions is not None and every and all(study.patient not in positions for study in every):
        raise AnnotationError(
            f"File {files.projections} lists none of the {len(every)} studies of {files.main} (it has "
            f"{first_names(list(positions))}, they are {first_names([study.id for study in every])}); copy it again, "
            "or remove it to go on without view positions."
        )
    return studies
