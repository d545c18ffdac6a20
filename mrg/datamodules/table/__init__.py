"""Any table of images and reports as studies, by a map of its columns.

A row is a study, or an image, of which those with the same id are a study. See `formats.py` for the supported formats,
`configs/data/table.yaml` for an example of every setting, and the other files there for published data sets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mrg.datamodules.base import ReportDataModule, check_choices
from mrg.datamodules.errors import DataError, first_names
from mrg.datamodules.study import SPLITS, Study, all_as_test, split_by_patient
from mrg.datamodules.table.formats import open_table
from mrg.datamodules.table.rows import Columns, Draft, TableReader
from mrg.errors import UserError, counted

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validate": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of splits in published data sets."""


class TableDataModule(ReportDataModule):
    """Data module of a table.

    Args:
        table: File in `root` (CSV, TSV, JSON, JSON lines, Parquet), folder saved by `datasets`, or id of a data set on
            the hub; or one for each of `train`, `val` and `test`.
        columns: Columns by role.
        root: Folder of the data set.
        images: Folder in `root` to which image paths are relative; empty for `root` itself.
        row: Whether a row is a `"study"`, or an `"image"`, of which those with the same id are a study.
        split: `"given"` for the splits of the table (a file for each, or those of a data set on the hub), `"column"`
            for those in a column, `"random"` for a random split by patient, `"test"` to use all studies for test.
        split_names: Map from a value of the split column, or a given split, to `train`, `val`, `test`, or `skip` to
            leave its studies out; the usual names are known.
        seed: Random seed of a random split.
        fractions: Fractions of the patients in train, val and test of a random split.
        val_fraction: Fraction of the training patients whose studies become val, for a table without validation split.
        empty_reports: Whether studies with an empty report are left out (`"drop"`), an error (`"raise"`), or kept for
            `predict` and `data check`, but neither trained on nor scored (`"keep"`).
        min_words: Minimum number of words of a report; studies with shorter ones are left out.
        positions: Positions of the views to use (`frontal`, `lateral`, or an empty text for unknown ones); empty for
            all. A study without such a view is left out.
        missing_images: Whether a missing image is an error (`"raise"`) or left out (`"drop"`).
        encoding: Encoding of a text file.
        delimiter: Delimiter of a CSV file; empty for a tab in .tsv, otherwise a comma.
        cache_dir: Cache folder of `datasets`; empty for its default.
        **kwargs: Arguments of `ReportDataModule`.
    """

    def __init__(
        self,
        table: str | dict[str, str],
        columns: Columns,
        root: str = ".",
        images: str = "",
        row: Literal["study", "image"] = "study",
        split: Literal["given", "column", "random", "test"] = "given",
        split_names: dict[str, str] | None = None,
        seed: int = 0,
        fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
        val_fraction: float = 0.0,
        empty_reports: Literal["drop", "raise", "keep"] = "drop",
        min_words: int = 0,
        positions: list[str] | None = None,
        missing_images: Literal["raise", "drop"] = "raise",
        encoding: str = "utf-8",
        delimiter: str = "",
        cache_dir: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choices(TableDataModule.__init__, locals())
        if row == "image" and not columns.id:
            raise UserError("Rows that are images need data.init_args.columns.id, the column that names their study.")
        if split == "column" and not columns.split:
            raise UserError("A split by column needs data.init_args.columns.split, the column that names the split.")
        if set(positions or ()) - {"frontal", "lateral", ""}:
            raise UserError(f"Expected data.init_args.positions to be of frontal, lateral and '', but got {positions}.")
        if not 0 <= val_fraction < 1:
            raise UserError(f"Expected data.init_args.val_fraction to be in [0, 1), but got {val_fraction}.")
        wrong = sorted(set((split_names or {}).values()) - {*SPLITS, "skip"})
        if wrong:
            raise UserError(f"Expected data.init_args.split_names to map to train, val, test or skip, not {wrong[0]}.")
        self.root, self.images = Path(root).expanduser(), images
        self.table = {"": table} if isinstance(table, str) else dict(table)
        self.columns, self.row, self.split = columns, row, split
        self.split_names = {name.lower(): split for name, split in (split_names or {}).items()}
        self.seed, self.fractions, self.val_fraction = seed, fractions, val_fraction
        self.empty_reports, self.min_words, self.positions = empty_reports, min_words, positions or []
        self.missing_images = missing_images
        self.encoding, self.delimiter, self.cache_dir = encoding, delimiter, cache_dir
        self.num_rows = 0

    @property
    def title(self) -> str:
        """Name of the table, for messages."""
        return ", ".join(self.table.values())

    def read(self) -> dict[str, list[Study]]:
        """Read the table, filter its studies and split them.

        Raises:
            DataNotFoundError: If the table or an image is missing.
            DataError: If the table cannot be used, or no study is left.
        """
        reader = TableReader(self.columns, self.root / self.images, self.row, self.title, keep_repeats=self.checking)
        self.num_rows = 0
        for name, file in self.table.items():
            tables = open_table(file, self.root, self.columns.names(), self.encoding, self.delimiter, self.cache_dir)
            for given, rows in tables.items():
                self.num_rows += len(rows)
                reader.add(rows, name or given)
        drops = self.missing_images == "drop"
        drafts = reader.finish("keep" if self.checking and not drops else self.missing_images)
        if drops:
            self.dropped["missing_images drop"] = [str(reader.finder.folder / name) for name in reader.finder.missing]
        studies = {name: self._filtered(part) for name, part in self._by_split(drafts).items()}
        if not any(studies.values()):
            raise DataError(
                f"Table {self.title}: none of its {len(drafts)} studies is left: {self._removed()}. Check "
                "data.init_args.columns and the filters."
            )
        return self._split(studies)

    def describe(self) -> str:
        """Describe in one line the table, its splits, and what was left out."""
        self.setup()
        text = f"{super().describe()} from {self.title}, {self.num_rows} rows"
        return f"{text}; left out: {self._removed()}" if any(self.removed.values()) else text

    def _removed(self) -> str:
        return ", ".join(f"{count} with {what}" for what, count in self.removed.items() if count)

    def _by_split(self, drafts: list[Draft]) -> dict[str, list[Draft]]:
        """Drafts by train, val and test, or all of them under "" if the split is made later."""
        if self.split in ("random", "test"):
            return {"": drafts}
        names = {**SPLIT_NAMES, **self.split_names}
        found: dict[str, int] = {}
        parts: dict[str, list[Draft]] = {split: [] for split in (*SPLITS, "skip")}
        for draft in drafts:
            found[draft.split] = found.get(draft.split, 0) + 1
            parts[names.get(draft.split.lower(), "skip")].append(draft)
        unknown = {value: count for value, count in found.items() if value.lower() not in names}
        if unknown == {"": len(drafts)} and self.split == "given":
            raise DataError(
                f"Table {self.title} has no splits: set data.init_args.split to column, random or test, or "
                "data.init_args.table to a file for each of train, val and test."
            )
        if unknown:
            listed = ", ".join(
                f"{value!r} ({counted(count, 'study', 'studies')})" for value, count in list(unknown.items())[:5]
            )
            raise DataError(
                f"Table {self.title}: the splits {listed} are unknown; map them to train, val, test or skip in "
                "data.init_args.split_names."
            )
        idle = [value for value in self.split_names if value not in {name.lower() for name in found}]
        if idle:
            raise DataError(
                f"Table {self.title}: data.init_args.split_names maps {idle[0]!r}, which no study has; it has "
                f"{', '.join(map(repr, found))}."
            )
        self.removed["a split that is skipped"] = len(parts.pop("skip"))
        return parts

    def _filtered(self, drafts: list[Draft]) -> list[Study]:
        studies = []
        few_words = f"fewer than {self.min_words} words in the report"
        no_view = f"no {' or '.join(p or 'unknown' for p in self.positions)} view"
        for draft in drafts:
            views = [v for v in draft.views if not self.positions or v.position in self.positions]
            reason = (
                "no image" if not draft.views
                else no_view if not views
                else "an empty report" if not draft.report and self.columns.report and self.empty_reports != "keep"
                else few_words if draft.report and len(draft.report.split()) < self.min_words
                else ""
            )  # fmt: skip
            if reason:
                self.removed[reason] = self.removed.get(reason, 0) + 1
            else:
                studies.append(draft.study(views))
        empty = self.removed.get("an empty report", 0)
        if empty and self.empty_reports == "raise":
            names = [draft.id for draft in drafts if not draft.report]
            raise DataError(
                f"Table {self.title}: {empty} studies have an empty report: {first_names(names)}; set "
                "data.init_args.empty_reports to drop to leave them out."
            )
        return studies

    def _split(self, studies: dict[str, list[Study]]) -> dict[str, list[Study]]:
        if self.split == "random":
            return split_by_patient(studies[""], self.seed, self.fractions)
        if self.split == "test":
            return all_as_test(studies[""])
        if self.val_fraction and not studies["val"]:
            parts = split_by_patient(studies["train"], self.seed, (1 - self.val_fraction, self.val_fraction, 0.0))
            studies["train"], studies["val"] = parts["train"], parts["val"]
        return studies
