"""The tables of MIMIC-CXR-JPG: study, split, view position and time of each image."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrg.datamodules.errors import DataError, DataNotFoundError, first_names

if TYPE_CHECKING:
    import pyarrow as pa

PUBLISHED_AT = "https://physionet.org/content/mimic-cxr-jpg/"
_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_SHARD_STUDIES = 4096


def find_table(folders: Sequence[Path], kind: str) -> Path:
    """Find `mimic-cxr-2.0.0-<kind>.csv.gz` of any release, compressed or not, in the first folder that has it.

    Raises:
        DataNotFoundError: If no folder has one.
    """
    for folder in folders:
        found = sorted(folder.glob(f"mimic-cxr-*-{kind}.csv.gz")) or sorted(folder.glob(f"mimic-cxr-*-{kind}.csv"))
        if found:
            return found[0]
    raise DataNotFoundError(
        f"No table mimic-cxr-2.0.0-{kind}.csv.gz in {' or '.join(map(str, folders))}; set `data.init_args.tables` to "
        f"the folder that holds it (published at {PUBLISHED_AT})."
    )


def read_table(file: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a CSV file, compressed or not, as strings.

    Raises:
        DataError: If it is truncated, not CSV, empty, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.csv

    options = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns), strings_can_be_null=False
    )
    try:
        table = pa.csv.read_csv(file, convert_options=options)
    except KeyError:
        found = _column_names(file)
        absent = [column for column in columns if column not in found]
        only = f", only {first_names(found, 20)}" if found else ""
        raise DataError(
            f"File {file} has no column {', '.join(absent)}{only}; copy it again from {PUBLISHED_AT}."
        ) from None
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"File {file} cannot be read ({reason}); copy it again from {PUBLISHED_AT}.") from None
    if not len(table):
        raise DataError(f"File {file} has no rows; copy it again from {PUBLISHED_AT}.")
    return table


def _column_names(file: Path) -> list[str]:
    """Names in the first line; none if it is not text."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            return next(csv.reader([lines.readline(1_000_000).decode("utf-8-sig")]), [])
    except (OSError, EOFError, zlib.error, ValueError, csv.Error):
        return []


class ImageList:
    """All images of the split table with their view position and time, sorted by patient and study.

    Args:
        split_file: `mimic-cxr-2.0.0-split.csv.gz`.
        metadata_file: `mimic-cxr-2.0.0-metadata.csv.gz`.

    Attributes:
        num_studies: Number of studies.
        num_shards: Number of shards, of a few thousand studies each; no patient is in two shards.

    Raises:
        DataError: If a table cannot be used, or the two are of different releases.
    """

    def __init__(self, split_file: Path, metadata_file: Path) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        split = read_table(split_file, ("subject_id", "study_id", "dicom_id", "split"))
        names = set(pc.unique(split["split"]).to_pylist())
        if not names <= set(_SPLITS):
            raise DataError(
                f"File {split_file}: expected the splits train, validate and test, but got {sorted(names)}; copy it "
                f"again from {PUBLISHED_AT}."
            )
        metadata = read_table(metadata_file, ("dicom_id", "ViewPosition", "StudyDate", "StudyTime"))
        places = pc.index_in(split["dicom_id"], value_set=metadata["dicom_id"].combine_chunks())
        if places.null_count:
            absent = split["dicom_id"].filter(pc.is_null(places)).to_pylist()
            raise DataError(
                f"{places.null_count} of the {len(split)} images of {split_file} are not in {metadata_file}: "
                f"{first_names(absent)}; take both files from one release ({PUBLISHED_AT})."
            )
        for column in ("ViewPosition", "StudyDate", "StudyTime"):
            split = split.append_column(column, metadata[column].take(places))
        split = split.append_column("row", pa.array(np.arange(len(split))))
        order = [(column, "ascending") for column in ("subject_id", "study_id", "row")]
        self._table = split.take(pc.sort_indices(split, sort_keys=order)).combine_chunks()
        self._cut()

    def _cut(self) -> None:
        """Find where patients, studies and shards begin."""
        patients, studies = (
            np.concatenate([[0], 1 + np.flatnonzero(np.diff(_codes(self._table[name]))), [len(self._table)]])
            for name in ("subject_id", "study_id")
        )
        # In a damaged table two patients may share a study id; a patient's first image always begins a study.
        studies = np.union1d(studies, patients)
        self.num_studies = len(studies) - 1
        wanted = np.searchsorted(studies, patients)  # studies before each patient
        self._cuts = [0]
        for patient, count in zip(patients.tolist(), wanted.tolist(), strict=True):
            if count - np.searchsorted(studies, self._cuts[-1]) >= _SHARD_STUDIES:
                self._cuts.append(patient)
        if self._cuts[-1] != len(self._table):
            self._cuts.append(len(self._table))
        self.num_shards = len(self._cuts) - 1

    def studies(self, shard: int) -> Iterator[dict[str, Any]]:
        """The studies of a shard, sorted by patient and time.

        Each has `patient`, `id`, `split`, `datetime`, and, for its images in the order of the table, `dicom_ids` and
        `positions`.
        """
        start, end = self._cuts[shard], self._cuts[shard + 1]
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for row in self._table.slice(start, end - start).to_pylist():
            study = found.setdefault(
                (row["subject_id"], row["study_id"]),
                {
                    "patient": row["subject_id"],
                    "id": row["study_id"],
                    "split": _SPLITS[row["split"]],
                    "datetime": study_time(row["StudyDate"], row["StudyTime"]),
                    "dicom_ids": [],
                    "positions": [],
                },
            )
            if study["split"] != _SPLITS[row["split"]]:
                raise DataError(
                    f"Study {row['study_id']} has images in two splits of the split table; copy it again from "
                    f"{PUBLISHED_AT}."
                )
            study["dicom_ids"].append(row["dicom_id"])
            study["positions"].append(row["ViewPosition"].upper())
        yield from sorted(found.values(), key=lambda study: (study["patient"], study["datetime"], study["id"]))


def study_time(date: str, time: str) -> str:
    """Date and time as a sortable text: `21800506 094005.515` for the date 21800506 and the time `94005.515`.

    The table has times as numbers, without leading zeros. Empty if there is no date.
    """
    whole, _, fraction = time.partition(".")
    return f"{date} {whole.zfill(6)}.{fraction.ljust(3, '0')}" if date else ""


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    codes: np.ndarray = column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return codes
