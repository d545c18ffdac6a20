"""The results of a check as tables, for the terminal and the page."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mrg.commands.data_check.messages import percent
from mrg.commands.data_check.reports import SHORT
from mrg.metrics.constants import BEST
from mrg.metrics.evaluation import COLUMNS
from mrg.metrics.remarks import what_is_best

WIDTH = 100
_NUM_VIEWS = 8
_NUM_SIZES = 5


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Args:
        key: Anchor in the page.
        title: Title of the table.
        columns: Column heads; the first is often empty.
        rows: Cells of each row.
        note: Explanation below the title.
    """

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        """The table as text, the first column left-aligned and the others right-aligned."""
        cells = [list(self.columns), *map(list, self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [self.title, *textwrap.wrap(self.note, WIDTH)]
        for row in cells:
            first, *rest = (
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  " + "  ".join([first, *rest]).rstrip())
        return "\n".join(lines)


def tables(result: Mapping[str, Any]) -> list[Table]:
    """All non-empty tables of the result of `check_splits`."""
    made = [
        _counts(result),
        _removed(result),
        _images(result["images"]),
        _views(result["counts"]),
        _leakage(result),
        _labels(result["labels"]),
        *_baselines(result["baselines"]),
    ]
    return [table for table in made if table.rows]


def format_check(result: Mapping[str, Any], where: str) -> str:
    """The result of a check as text.

    Args:
        result: Result of `check_splits`.
        where: File with the complete lists.
    """
    blocks = [_messages(result["messages"]), *_first_images(result["images"], where), *map(str, tables(result))]
    return "\n\n".join(blocks)


def _messages(messages: Sequence[Mapping[str, str]]) -> str:
    lines = []
    for row in messages:
        lines += textwrap.wrap(f"{row['kind'].capitalize()}: {row['text']}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines or ["No errors, warnings or notes."])


def _first_images(images: Mapping[str, Any], where: str) -> list[str]:
    """The first missing and unreadable images, one line each."""
    blocks = []
    for kind in ("missing", "unreadable"):
        rows = images[kind]
        if rows:
            more = [f"  … all {len(rows):,} in {where}"] if len(rows) > _NUM_SIZES else []
            shown = [f"  {row['split']}  {row.get('error') or row['image']}" for row in rows[:_NUM_SIZES]]
            blocks.append("\n".join([f"{kind.capitalize()} images", *shown, *more]))
    return blocks


def _counts(result: Mapping[str, Any]) -> Table:
    counts, reports, within = result["counts"], result["reports"], result["repeats"]["within"]

    def row(title: str, values: Iterable[int | str]) -> list[str]:
        return [title, *(value if isinstance(value, str) else f"{value:,}" for value in values)]

    words = [part["words"]["quantiles"] for part in reports.values()]
    rows = [
        row("studies", (part["studies"] for part in counts.values())),
        row("images", (part["images"] for part in counts.values())),
        row("patients", (part["patients"] or "-" for part in counts.values())),
        row("reports: empty", (len(part["empty"]) for part in reports.values())),
        row(f"reports: under {SHORT} words", (part["num_short"] for part in reports.values())),
        row("reports: distinct", (part["distinct_folded"] for part in within.values())),
        row("studies with a repeated report", (part["sharing_folded"] for part in within.values())),
        row(
            "words: median (5 % to 95 %)",
            (f"{_number(q['median'])} ({_number(q['5%'])} to {_number(q['95%'])})" for q in words),
        ),
        row("words: longest report", (_number(q["max"]) for q in words)),
        row("with an indication", (part["num_indications"] for part in reports.values())),
        row("with a prior study", (part["num_priors"] for part in reports.values())),
    ]
    note = "Reports are compared ignoring case and spacing. Studies without a patient id are not counted in patients."
    return Table("counts", "Studies", ["", *counts], rows, note)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _removed(result: Mapping[str, Any]) -> Table:
    removed = result.get("data", {}).get("removed", {})
    rows = [[name, f"{count:,}"] for name, count in removed.items()]
    return Table("removed", "Removed by filters", ["filter", "studies"], rows)


def _images(images: Mapping[str, Any]) -> Table:
    total = sum(images["num_images"].values())
    rows = [["listed", f"{total:,}"], ["missing", f"{len(images['missing']):,}"]]
    if images["in_memory"]:
        rows.insert(1, ["of these in memory, not files", f"{images['in_memory']:,}"])
    if images["is_read"]:
        rows.append(["unreadable", f"{len(images['unreadable']):,}"])
        rows.append(["groups of identical ones", f"{len(images['duplicates']):,}"])
        common = list(images["sizes"].items())[:_NUM_SIZES]
        rows += [[f"of {size} pixels", f"{count:,}"] for size, count in common]
        rest = total - len(images["missing"]) - len(images["unreadable"]) - sum(count for _, count in common)
        if rest:
            rows.append(["of other sizes", f"{rest:,}"])
    return Table("images", "Images", ["", "images"], rows)


def _views(counts: Mapping[str, Any]) -> Table:
    total: Counter[str] = sum((Counter(row["views"]) for row in counts.values()), Counter())
    shown = [views for views, _ in total.most_common(_NUM_VIEWS)]

    def cell(views: str, row: Mapping[str, Any]) -> str:
        count = row["views"].get(views, 0)
        return f"{count:,} ({percent(count, row['studies'])})"

    rows = [[views, *(cell(views, row) for row in counts.values())] for views in shown]
    if len(total) > len(shown):
        rest = (sum(count for views, count in row["views"].items() if views not in shown) for row in counts.values())
        rows.append([f"{len(total) - len(shown)} others", *(f"{count:,}" for count in rest)])
    note = "Views of a study in the order in which a policy sees them: F frontal, L lateral, ? unknown."
    return Table("views", "Views", ["", *counts], rows, note)


def _leakage(result: Mapping[str, Any]) -> Table:
    def cell(part: int | None, whole: int) -> str:
        return "unknown" if part is None else f"{part:,} ({percent(part, whole)})"

    rows = [
        [
            f"{row['split']} in {row['source']}",
            cell(row["exact"], row["num_studies"]),
            cell(row["folded"], row["num_studies"]),
            f"{row['abnormal']['folded']:,} of {row['abnormal']['num_studies']:,}",
            f"{row['free']:,}",
            cell(row["patient_studies"], row["num_studies"]),
        ]
        for row in result["leakage"]
    ]
    note = (
        "Studies of one split whose report, verbatim or ignoring case and spacing (folded), or whose patient occurs in "
        f"another. Abnormal: without No Finding (labeler {result['labels']['labeler']})."
    )
    columns = ["", "verbatim", "folded", "folded, abnormal", "no overlap", "same patient"]
    return Table("leakage", "Leakage between splits", columns, rows, note)


def _labels(labels: Mapping[str, Any]) -> Table:
    prevalence, shift = labels["prevalence"], labels["shift"]
    splits = [split for split, rows in prevalence.items() if rows["No Finding"]["share"] is not None]
    if not splits:
        return Table("labels", "", [], [])
    others = shift["differences"]

    def gap(row: Mapping[str, Any]) -> str:
        mark = "*" if row["is_shift"] else " "
        return f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]{mark}"

    rows = [
        [
            condition,
            *(f"{100 * prevalence[split][condition]['share']:.1f}" for split in splits),
            *(gap(rows[condition]) for rows in others.values()),
        ]
        for condition in prevalence[splits[0]]
    ]
    note = f"Percent of non-empty reports with a condition, positive or uncertain (labeler {labels['labeler']})."
    if others:
        note += (
            f" Differences in percentage points, with {shift['num_comparisons']} simultaneous "
            f"{100 * shift['level']:.0f} % intervals. * marks a shift: the interval excludes 0, and the difference is "
            "at least one point or half of the smaller percentage."
        )
    columns = ["", *splits, *(f"{split} - {shift['source']} " for split in others)]
    return Table("labels", "Findings", columns, rows, note)


def _baselines(baselines: Mapping[str, Any]) -> list[Table]:
    made = []
    columns = [column for column in COLUMNS if column != "informedness"]  # 0 for all of them
    for split, scores in baselines["scores"].items():
        rows = [
            [name, *(_score(row["scores"][column]) for column in columns)] for name, row in scores["systems"].items()
        ]
        if best := scores["best_constant"]:
            rows.append([BEST, *(_score(best["scores"][column]) for column in columns)])
        note = (
            f"{scores['num_studies']:,} studies, labeler {scores['labeler']}, MCCS margin {scores['margin']:g}, in "
            "percent with 95 % bootstrap intervals."
        )
        if baselines["train_count"]:
            times = "once" if baselines["train_count"] == 1 else f"{baselines['train_count']:,} times"
            note += f" The most frequent report occurs {times} in train."
        note = " ".join([note, *what_is_best(scores)])
        made.append(Table(f"baselines_{split}", f"Baselines on the {split} split", ["", *columns], rows, note))
    return made


def _score(score: Mapping[str, float]) -> str:
    value, low, high = (f"{100 * score[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
