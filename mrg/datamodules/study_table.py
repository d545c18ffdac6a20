"""A sequence of studies in an Arrow table on disk: a study is made when it is asked for.

The table stays on disk and is mapped into memory, so that a data set of any size takes none, and a loader's worker is
sent the names of the files, not the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from mrg.datamodules.study import Study

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH = 1000


class RowReader(Protocol):
    """Makes studies of a table's rows; it is sent to a loader's workers, so it can be pickled."""

    @property
    def report_columns(self) -> tuple[str, ...]:
        """The columns that `report` reads."""

    def report(self, row: Mapping[str, Any]) -> str:
        """The reference report of a row."""

    def study(self, row: Mapping[str, Any]) -> Study:
        """The study of a row, without its prior."""


class StudyTable(Sequence[Study]):
    """Some rows of a table as studies; a slice of it costs nothing.

    Args:
        table: Rows on disk, see `mrg.datamodules.mimic.shards`.
        rows: (N,) int64, the rows of the studies, in their order.
        reader: Makes a study of a row.
        priors: (N,) int64, the row of each study's prior, -1 where it has none; `None` where no study has one.
    """

    def __init__(self, table: Dataset, rows: np.ndarray, reader: RowReader, priors: np.ndarray | None = None) -> None:
        self.table, self.rows, self.reader, self.priors = table, rows, reader, priors

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Study: ...

    @overload
    def __getitem__(self, index: slice) -> StudyTable: ...

    def __getitem__(self, index: int | slice) -> Study | StudyTable:
        """A study, or the studies of a slice as another such sequence."""
        if isinstance(index, slice):
            return self.select(index)
        prior = -1 if self.priors is None else int(self.priors[index])
        return self._study(self.table[int(self.rows[index])], prior)

    def select(self, places: slice | list[int]) -> StudyTable:
        """The studies at some places as another such sequence."""
        priors = None if self.priors is None else self.priors[places]
        return StudyTable(self.table, self.rows[places], self.reader, priors)

    def __iter__(self) -> Iterator[Study]:
        """All studies, read many rows at a time."""
        for position, row in enumerate(self._read(self.table)):
            yield self._study(row, -1 if self.priors is None else int(self.priors[position]))

    def reports(self) -> list[str]:
        """The reports alone, which is far faster than making the studies."""
        return [
            self.reader.report(row) for row in self._read(self.table.select_columns(list(self.reader.report_columns)))
        ]

    def _read(self, table: Dataset) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.rows), _BATCH):
            columns = table[self.rows[start : start + _BATCH].tolist()]
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

    def _study(self, row: Mapping[str, Any], prior: int) -> Study:
        study = self.reader.study(row)
        return study if prior < 0 else dataclasses.replace(study, prior=self.reader.study(self.table[prior]))
