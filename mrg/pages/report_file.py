"""Reports of a model that was trained elsewhere, read from a file, in the form of a tested run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrg.log import log
from mrg.metrics.predictions import (
    PREDS_COLUMNS,
    TARGET_COLUMNS,
    Predictions,
    column_names,
    read_ids,
    read_predictions,
    some,
)
from mrg.metrics.rows import read_rows
from mrg.metrics.texts import join, read_texts
from mrg.pages.tested_run import TestedRun


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where the texts of a file are.

    Args:
        references: File of the references, joined by id; None if they are in the file of the reports.
        by_row: Whether to join by the order of the files.
        id: Column of the ids; by default the first known name, as for `preds` and `target`.
        preds: Column of the generated reports.
        target: Column of the references.
    """

    references: Path | None = None
    by_row: bool = False
    id: str | None = None
    preds: str | None = None
    target: str | None = None


@dataclasses.dataclass
class ReportFile(TestedRun):
    """A file of reports; it has no configuration and no results.

    Args:
        pairs: Reports with their references; None if there are none.
    """

    pairs: Predictions | None = None

    def predictions(self) -> Predictions:
        """Studies with a reference."""
        return super().predictions() if self.pairs is None else self.pairs

    def config(self) -> dict[str, Any]:
        """Empty."""
        return {}


def read_system(path: Path, columns: Columns) -> TestedRun:
    """Read a tested run from its folder, or the reports of any model from a file.

    Args:
        path: Folder with predictions.jsonl, or a file: .jsonl, .json, .csv or .tsv.
        columns: Where the texts of a file are.

    Raises:
        UserError: If it cannot be read; the message names the file and the rows.
    """
    if path.is_dir():
        return TestedRun.read(path)
    pairs = _pairs(path, columns)
    if pairs is None:
        texts = read_texts(path, "preds", columns.id, columns.preds)
        ids = texts.ids or [str(number) for number in range(1, len(texts.texts) + 1)]
        log.info(f"{path} has no references: pass --references FILE for verdicts and scores.")
        rows = [{"id": name, "prediction": text} for name, text in zip(ids, texts.texts, strict=True)]
    else:
        if pairs.no_target:
            log.warning(f"{path}: {len(pairs.no_target):,} studies have no reference and are left out: "
                        f"{some(pairs.no_target)}.")  # fmt: skip
        rows = [
            {"id": name, "prediction": text, "target": target}
            for name, text, target in zip(pairs.ids, pairs.preds, pairs.target, strict=True)
        ]
    extras = {} if columns.by_row else _extras(path, columns.id)
    return ReportFile(path.parent, [{**extras.get(row["id"], {}), **row} for row in rows], {}, pairs)


def _pairs(path: Path, columns: Columns) -> Predictions | None:
    """Reports and references; None if there are no references."""
    if columns.references is not None:
        other = columns.references
        target = read_texts(other, "target", _id_column(columns.id, other, path), columns.target)
        preds = read_texts(path, "preds", _id_column(columns.id, path, other), columns.preds)
        return join(preds, target, columns.by_row)
    names = column_names(path)
    if columns.target or (
        any(name in names for name in TARGET_COLUMNS)
        and (columns.preds or any(name in names for name in PREDS_COLUMNS))
    ):
        return read_predictions(path, columns.id, columns.preds, columns.target)
    return None


def _id_column(column: str | None, path: Path, other: Path) -> str | None:
    """The column of the ids; the default one if only the other file has it."""
    if column is not None and column not in column_names(path) and column in column_names(other):
        return None
    return column  # if no file has it, the reader lists the columns of the file


def _extras(path: Path, id_column: str | None) -> dict[str, dict[str, Any]]:
    """Id -> further fields that the gallery shows: thinking, format and images, where a file of JSON has them."""
    if path.suffix.lower() not in (".jsonl", ".json"):
        return {}
    rows = read_rows(path)
    ids, _ = read_ids(path, rows, id_column if any(id_column in row for row in rows) else None)
    return {name: _extra(row) for name, row in zip(ids, rows, strict=True)}


def _extra(row: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"thinking": str, "completion": str, "format": bool}
    found = {key: row[key] for key, kind in kinds.items() if isinstance(row.get(key), kind)}
    images, positions = row.get("images"), row.get("positions")
    if isinstance(images, list) and all(isinstance(name, str) for name in images):
        found["images"] = images
        if isinstance(positions, list) and len(positions) == len(images) and all(isinstance(p, str) for p in positions):
            found["positions"] = positions
    return found
