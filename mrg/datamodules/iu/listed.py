"""The studies of IU X-Ray that R2Gen's `annotation.json` lists, with what the reports of the collection add to them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Literal

from mrg.datamodules.annotation import SPLITS, AnnotationError, DataNotFoundError, Item, first_names, read_items
from mrg.datamodules.iu.files import IUFiles
from mrg.datamodules.iu.record import IURecord, Sections, patient_of

_log = logging.getLogger(__name__)


def read_listed(
    files: IUFiles, sections: Sections = "findings", empty_reports: Literal["raise", "keep"] = "raise"
) -> dict[str, list[IURecord]]:
    """Read the annotation, with indication, MeSH and impression from the XML reports or the table, if either is there.

    Findings are the annotation's report; where the impression is wanted, they too come from the reports, because some
    copies of the annotation hold both in one.

    Args:
        files: Where the parts are.
        sections: What the report is made of.
        empty_reports: Whether an empty report of the annotation is an error; of no meaning for other sections.

    Returns:
        The records of `"train"`, `"val"` and `"test"`, whose images are the listed paths.

    Raises:
        DataNotFoundError: If a file is missing, or the impression is wanted and there is nothing to take it from.
        AnnotationError: If a file cannot be used, or none of the listed studies is among the reports.
    """
    items = read_items(files.annotation, empty_reports if sections == "findings" else "keep")
    if files.reports is None:
        if sections != "findings":
            raise DataNotFoundError(
                f"File {files.annotation} holds findings alone: to have the impression, put NLMCXR_reports.tgz or "
                "indiana_reports.csv beside it, or set `data.init_args.sections` to findings."
            )
        return {split: [_listed(item) for item in items[split]] for split in SPLITS}
    reports = {record.patient: record for record in files.read_reports()}
    every = [item for split in SPLITS for item in items[split]]
    _warn_of_unknown([item.id for item in every if patient_of(item.id) not in reports], len(every), files)
    pairs = [(item, reports[patient_of(item.id)]) for item in every if patient_of(item.id) in reports]
    num_other = sum(item.report != record.findings for item, record in pairs)
    if num_other:
        _log.warning(
            "File %s: the reports of %d of %d studies are not the findings of %s.",
            files.annotation,
            num_other,
            len(pairs),
            files.reports,
        )
    return {
        split: [_joined(item, reports.get(patient_of(item.id)), sections) for item in items[split]] for split in SPLITS
    }


def select_listed(records: Sequence[IURecord], files: IUFiles) -> dict[str, list[IURecord]]:
    """Pick the records that the annotation lists, in its order; only its ids are used.

    Raises:
        DataNotFoundError: If there is no annotation.
        AnnotationError: If it cannot be used, or none of its ids is among the records.
    """
    if not files.annotation.is_file():
        raise DataNotFoundError(
            f"File {files.annotation} does not exist, but it alone lists R2Gen's split; copy it there, or set "
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
        raise AnnotationError(
            f"File {files.annotation}: {finding}; expected ids such as CXR12_IM-0001; copy both files again, or remove "
            "the one that is of another data set."
        )
    _log.warning("File %s: %s.", files.annotation, finding)


def _listed(item: Item) -> IURecord:
    return IURecord(item.id, patient_of(item.id), item.image_path, item.report)


def _joined(item: Item, record: IURecord | None, sections: Sections) -> IURecord:
    if record is None:
        return _listed(item) if sections == "findings" else dataclasses.replace(_listed(item), findings="")
    findings = item.report if sections == "findings" else record.findings
    return dataclasses.replace(record, id=item.id, images=item.image_path, findings=findings)
