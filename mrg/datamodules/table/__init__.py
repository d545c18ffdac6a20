"""Any table of images and reports as studies: a column map says which column is what.

One row is one study, or one row is one image and rows of the same id make a study. See `table_source.py` for the kinds
of tables, `configs/data/table.yaml` for an example of every setting, and the other files there for published data sets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mrg.datamodules.annotation import AnnotationError
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.splits import SPLITS, all_as_test, split_by_patient
from mrg.datamodules.study import Study
from mrg.datamodules.table.rows import Columns, Draft, TableReader, first
from mrg.datamodules.table.source import open_table
from mrg.errors import UserError

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validate": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What published data sets call their splits."""


class TableDataModule(ReportDataModule):
    """A table as a data module.

    Args:
        root: Folder of the data set.
        table: A file or folder in `root`, or the id of a data set of the hub (see `open_table`); or a file for each of
            `train`, `val` and `test`.
        columns: Which column is what.
        images: Folder in `root` to which image paths are relative; empty for `root` itself.
        row: What a row of the table is: a `"study"`, or an `"image"`, of which those with the same id are a study.
        split: `"given"` takes the splits that the table comes in (a file for each, or those of a data set of the hub),
            `"column"` reads them from a column, `"random"` makes them by patient, `"test"` takes all studies as test.
        split_names: Value of the split column, or name of a given split -> `train`, `val`, `test`, or `skip` to leave
            its studies out; the usual names are known.
        seed: Of a random split.
        fractions: Shares of the patients in train, val and test of a random split.
        val_fraction: Share of the training patients whose studies become val, for a table without such a split.
        empty_reports: `"drop"` leaves studies without a report out, `"raise"` makes them an error, `"keep"` keeps them.
        min_words: Studies whose report has fewer words are left out.
        positions: Use only views of these positions (`frontal`, `lateral`, or an empty text for unknown ones); empty
            uses all. A study without any is left out.
        missing_images: Whether a missing image is an error (`"raise"`) or left out (`"drop"`).
        encoding: Of a text file.
        delimiter: Of the columns of a CSV; empty: a tab for .tsv, otherwise a comma.
        cache_dir: Where `datasets` keeps its copy of the table; empty: where it always does.
        **kwargs: See `ReportDataModule`.
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
        for name, value, known in (
            ("row", row, ("study", "image")),
            ("split", split, ("given", "column", "random", "test")),
            ("empty_reports", empty_reports, ("drop", "raise", "keep")),
            ("missing_images", missing_images, ("raise", "drop")),
        ):
            if value not in known:
                raise UserError(f"Expected data.init_args.{name} to be one of {', '.join(known)}, but got {value!r}.")
        if row == "image" and not columns.id:
            raise UserError("Rows that are images need data.init_args.columns.id, which says what study they are of.")
        if split == "column" and not columns.split:
            raise UserError("A split by column needs data.init_args.columns.split, the name of the column.")
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
        """The table's name, for messages."""
        return ", ".join(self.table.values())

    def read(self) -> dict[str, list[Study]]:
        """Read the table, filter its studies and split them.

        Raises:
            DataNotFoundError: If the table or an image is missing.
            AnnotationError: If the table cannot be used, or no study is left.
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
            raise AnnotationError(self._nothing_left(len(drafts)))
        return self._split(studies)

    def describe(self) -> str:
        """See `ReportDataModule`; also which table, and what was left out."""
        self.setup()
        left_out = ", ".join(f"{count} with {what}" for what, count in self.removed.items() if count)
        text = f"{super().describe()} from {self.title}, {self.num_rows} rows"
        return f"{text}; left out: {left_out}" if left_out else text

    def _by_split(self, drafts: list[Draft]) -> dict[str, list[Draft]]:
        """Drafts by train, val and test, or all of them under "" where the table does not say."""
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
            raise AnnotationError(
                f"Table {self.title} comes in no splits: set data.init_args.split to column, random or test, or "
                "data.init_args.table to a file for each of train, val and test."
            )
        if unknown:
            listed = ", ".join(f"{value!r} ({count} studies)" for value, count in list(unknown.items())[:5])
            raise AnnotationError(
                f"Table {self.title}: the splits {listed} are not known; map them to train, val, test or skip in "
                "data.init_args.split_names."
            )
        idle = [value for value in self.split_names if value not in {name.lower() for name in found}]
        if idle:
            raise AnnotationError(
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
                else few_words if len(draft.report.split()) < self.min_words
                else ""
            )  # fmt: skip
            if reason:
                self.removed[reason] = self.removed.get(reason, 0) + 1
            else:
                studies.append(draft.study(views))
        empty = self.removed.get("an empty report", 0)
        if empty and self.empty_reports == "raise":
            names = [draft.id for draft in drafts if not draft.report]
            raise AnnotationError(
                f"Table {self.title}: {empty} studies have an empty report: {first(names)}; set "
                "data.init_args.empty_reports to drop in order to leave them out."
            )
        return studies

    def _nothing_left(self, num_read: int) -> str:
        reasons = ", ".join(f"{count} with {what}" for what, count in self.removed.items() if count)
        return (
            f"Table {self.title}: none of its {num_read} studies is left: {reasons}. Check data.init_args.columns and "
            "the filters beside it."
        )

    def _split(self, studies: dict[str, list[Study]]) -> dict[str, list[Study]]:
        if self.split == "random":
            return split_by_patient(studies[""], self.seed, self.fractions)
        if self.split == "test":
            return all_as_test(studies[""])
        if self.val_fraction and not studies["val"]:
            parts = split_by_patient(studies["train"], self.seed, (1 - self.val_fraction, self.val_fraction, 0.0))
            studies["train"], studies["val"] = parts["train"], parts["val"]
        return studies
