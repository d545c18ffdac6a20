"""One report of the IU X-Ray collection, whichever published form it was read from, and the study made of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

from mrg.datamodules.annotation import ImageFinder
from mrg.datamodules.iu.deidentified import clean_target
from mrg.datamodules.study import Study, View

Sections = Literal["findings", "impression", "both"]
Positions = Mapping[str, Mapping[str, str]]
"""Patient -> image -> position, the images in text order of their names."""


@dataclasses.dataclass(frozen=True)
class IURecord:
    """A report as written, with the names of its images.

    Args:
        id: R2Gen's id: the name of the first image without its last number; the patient where there is no image.
        patient: `CXR12`; the collection has one study of each patient. Empty where an annotation has other ids.
        images: `CXR12_IM-0001-3001`, in text order, or the listed paths of an annotation.
        findings: Section FINDINGS.
        impression: Section IMPRESSION.
        indication: Section INDICATION.
        mesh: The MeSH terms coded by hand; `("normal",)` where nothing is abnormal.
    """

    id: str
    patient: str
    images: tuple[str, ...]
    findings: str
    impression: str = ""
    indication: str = ""
    mesh: tuple[str, ...] = ()

    @property
    def normal(self) -> bool:
        """Whether the coders of the collection found nothing abnormal."""
        return self.mesh == ("normal",)


def make_record(patient: str, images: Sequence[str], sections: Mapping[str, str], mesh: Sequence[str]) -> IURecord:
    """A record with the id that R2Gen gives it.

    Args:
        patient: `CXR12`.
        images: Names without extension, in any order.
        sections: Texts by the names of the record's fields.
        mesh: The MeSH terms.
    """
    ordered = tuple(sorted(images))
    name = re.sub(r"-\d+$", "", ordered[0]) if ordered else patient
    return IURecord(name, patient, ordered, mesh=tuple(mesh), **sections)


def patient_of(study_id: str) -> str:
    """`CXR12` of `CXR12_IM-0001`, empty where the id is of another kind."""
    found = re.match(r"CXR\d+(?=_|$)", study_id)
    return found[0] if found else ""


def listed_first(record: IURecord, positions: Positions) -> IURecord:
    """Put images that the table of projections does not list last.

    Four of the images in the original reports are missing from the table, and R2Gen passes over them: both its views of
    CXR2084 and CXR3809 are seen to be listed ones.
    """
    listed = positions.get(record.patient, {})
    return dataclasses.replace(record, images=tuple(sorted(record.images, key=lambda image: image not in listed)))


def section_texts(record: IURecord, sections: Sections) -> tuple[str, ...]:
    """The wanted sections as written."""
    if sections == "both":
        return record.findings, record.impression
    return (record.findings if sections == "findings" else record.impression,)


def join_sections(texts: Sequence[str], deidentified: Literal["keep", "drop_token", "drop_sentence"] = "keep") -> str:
    """Sections as one report, a space between them; each is treated by `clean_target` on its own.

    A section of nothing but de-identified sentences keeps them: an empty target would teach silence.
    """
    return " ".join(clean_target(text, deidentified) or text for text in texts)


def to_study(
    record: IURecord, sections: Sections, positions: Positions | None, finder: ImageFinder, kaggle: bool = False
) -> Study:
    """Look the images up and make the study; its report is as written.

    An indication of nothing but the token `XXXX` says nothing and is left out; any other stays as written, in all
    splits alike, because it is read and not learned.

    Args:
        record: The record with the images that are wanted.
        sections: What the report is made of.
        positions: From the table of projections; None takes the first view for frontal and the second for lateral.
        finder: Finds the images and notes the missing ones.
        kaggle: Look for Kaggle's names of the images first, and then for those of Open-I.
    """
    listed = None if positions is None else positions.get(record.patient, {})
    views = tuple(
        View(finder.find(*_file_names(image, kaggle)), _position(image, index, listed))
        for index, image in enumerate(record.images)
    )
    return Study(
        id=record.id,
        views=views,
        report=join_sections(section_texts(record, sections)),
        indication=record.indication if clean_target(record.indication, "drop_token") else "",
        patient=record.patient,
    )


def _file_names(image: str, kaggle: bool) -> tuple[str, ...]:
    """The names under which an image is published: `CXR12_IM-0001-3001.png` (Open-I), `12_IM-0001-3001.dcm.png`."""
    if PurePosixPath(image).suffix:
        return (image,)  # a listed path
    short = image.removeprefix("CXR")
    if short.startswith("1_1_"):  # see `mrg.datamodules.iu.kaggle`
        short = short.removeprefix("1_")
    names = f"{image}.png", f"{short}.dcm.png"
    return names[::-1] if kaggle else names


def _position(image: str, index: int, listed: Mapping[str, str] | None) -> str:
    """Position of an image named as in the collection or numbered within its study (`<id>/0.png`)."""
    if listed is None:
        return ("frontal", "lateral", "")[min(index, 2)]
    path = PurePosixPath(image)
    name = path.stem if path.suffix else path.name
    if name.isdecimal():
        ordered = list(listed.values())
        return ordered[int(name)] if int(name) < len(ordered) else ""
    return listed.get(name, "")
