"""One report of the IU X-Ray collection, from any published form, and the study made of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

from mrg.datamodules.images.read import ImageFinder
from mrg.datamodules.study import Study, View
from mrg.files import is_missing

Sections = Literal["findings", "impression", "both"]
Deidentified = Literal["keep", "drop_token", "drop_sentence"]
Positions = Mapping[str, Mapping[str, str]]
"""Patient -> image -> position, the images in text order of their names."""

DEIDENTIFIED = "XXXX"


@dataclasses.dataclass(frozen=True)
class IURecord:
    """A report as written, with the names of its images.

    Args:
        id: R2Gen's id: the name of the first image without its last number; the patient if there is no image.
        patient: `CXR12`; the collection has one study per patient. Empty if an annotation has other ids.
        images: `CXR12_IM-0001-3001`, in text order, or the listed paths of an annotation.
        findings: Section FINDINGS.
        impression: Section IMPRESSION.
        indication: Section INDICATION.
        mesh: Manually coded MeSH terms; `("normal",)` if nothing is abnormal.
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
    """Make a record with the id that R2Gen gives it.

    Args:
        patient: `CXR12`.
        images: Names without extension, in any order.
        sections: Texts by field of the record; a missing value such as `nan` is an empty section.
        mesh: MeSH terms.
    """
    ordered = tuple(sorted(images))
    name = re.sub(r"-\d+$", "", ordered[0]) if ordered else patient
    texts = {field: "" if is_missing(text) else text for field, text in sections.items()}
    return IURecord(name, patient, ordered, mesh=tuple(mesh), **texts)


def patient_of(study_id: str) -> str:
    """`CXR12` from `CXR12_IM-0001`; empty for an id of another form."""
    found = re.match(r"CXR\d+(?=_|$)", study_id)
    return found[0] if found else ""


def listed_first(record: IURecord, positions: Positions) -> IURecord:
    """Put images that the table of projections does not list last.

    Four images of the original reports are missing from the table, and R2Gen does not use them: both of its views of
    CXR2084 and CXR3809 are listed ones.
    """
    listed = positions.get(record.patient, {})
    return dataclasses.replace(record, images=tuple(sorted(record.images, key=lambda image: image not in listed)))


def section_texts(record: IURecord, sections: Sections) -> tuple[str, ...]:
    """The requested sections as written."""
    if sections == "both":
        return record.findings, record.impression
    return (record.findings if sections == "findings" else record.impression,)


def join_sections(texts: Sequence[str], deidentified: Deidentified = "keep") -> str:
    """Join sections with a space, each cleaned by `clean_target`.

    A section that consists only of de-identified sentences is kept as written: an empty target would teach the policy
    to write empty reports.
    """
    return " ".join(clean_target(text, deidentified) or text for text in texts)


def clean_target(report: str, deidentified: Deidentified = "keep") -> str:
    """Remove the de-identification token `XXXX` from a training target.

    For training targets only: a reference with removed text is no longer the reference of other papers.

    Args:
        report: A report as written; without the token it is returned unchanged.
        deidentified: `"keep"`; `"drop_token"` removes the words with the token and superfluous punctuation;
            `"drop_sentence"` removes the sentences with the token.

    Returns:
        The target; empty if nothing else was written.
    """
    if deidentified == "keep" or DEIDENTIFIED not in report:
        return report
    if deidentified == "drop_sentence":
        # A full stop also ends a sentence if the space after it is missing, but not after the number of a list.
        sentences = re.split(r"(?<=[.!?])(?<!\b\d\.)\s+|(?<=[a-zX]\.)(?=[A-Z][a-z])", report.strip())
        return " ".join(sentence for sentence in sentences if DEIDENTIFIED not in sentence)
    text = re.sub(r"[\w'-]+", lambda word: "" if DEIDENTIFIED in word[0] else word[0], report)
    text = re.sub(r"\W+", _without_brackets, text)
    text = re.sub(r"(?<!\s)\s+(?=[.,;:!?)](\D|$))|(?<=\()\s+", "", text)
    text = re.sub(r"[.,;:!?](\s*[.,;:!?])+", _strongest, text)
    return " ".join(text.split()).lstrip(".,;:!? ")


def _without_brackets(gap: re.Match[str]) -> str:
    """What is between two words, without empty brackets and without slashes that do not join the words."""
    text = gap[0]
    if text == "/" and gap.start() > 0 and gap.end() < len(gap.string):
        return text
    first, last = text.find("("), text.rfind(")")
    return (text[:first] + text[last + 1 :] if 0 <= first < last else text).replace("/", "")


def _strongest(run: re.Match[str]) -> str:
    """One mark for all of a run that white space or the end of the text follows."""
    end = run.end()
    ended = end == len(run.string) or run.string[end].isspace()
    marks = run[0] if ended else run[0].rstrip(".,;:!?").rstrip()
    if len(marks) < 2:
        return run[0]
    return next((mark for mark in marks if mark in ".!?"), marks[0]) + run[0][len(marks) :]


def to_study(
    record: IURecord, sections: Sections, positions: Positions | None, finder: ImageFinder, kaggle: bool = False
) -> Study:
    """Make a study, with its report as written.

    An indication that consists only of the token `XXXX` is left out. Any other stays as written in all splits, because
    it is an input.

    Args:
        record: Record with the requested images.
        sections: Sections of the report.
        positions: Positions from the table of projections; None assumes that the first view is frontal and the second
            lateral.
        finder: Finds the images and records missing ones.
        kaggle: Look for Kaggle's names of the images before those of Open-I.
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
    """Published file names of an image: `CXR12_IM-0001-3001.png` (Open-I), `12_IM-0001-3001.dcm.png` (Kaggle)."""
    if PurePosixPath(image).suffix:
        return (image,)  # a listed path
    short = image.removeprefix("CXR")
    if short.startswith("1_1_"):  # see `mrg.datamodules.iu.kaggle`
        short = short.removeprefix("1_")
    names = f"{image}.png", f"{short}.dcm.png"
    return names[::-1] if kaggle else names


def _position(image: str, index: int, listed: Mapping[str, str] | None) -> str:
    """Position of an image that is named as in the collection or numbered within its study (`<id>/0.png`)."""
    if listed is None:
        return ("frontal", "lateral", "")[min(index, 2)]
    path = PurePosixPath(image)
    name = path.stem if path.suffix else path.name
    if re.fullmatch("[0-9]{1,9}", name):
        ordered = list(listed.values())
        return ordered[int(name)] if int(name) < len(ordered) else ""
    return listed.get(name, "")
