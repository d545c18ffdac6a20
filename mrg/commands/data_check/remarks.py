"""What a reader of the check must not miss, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mrg.commands.data_check.reports import SHORT

Remark = dict[str, str]
"""`kind`: `"error"` stops or spoils a run, `"warning"` changes what its scores mean, `"note"` is good to know."""


def remark(result: Mapping[str, Any]) -> list[Remark]:
    """Sentences on the result of `check_splits`, the gravest first."""
    found = [*_on_images(result["images"]), *_on_studies(result), *_on_leakage(result), *_on_labels(result["labels"])]
    return [{"kind": kind, "text": text} for wanted in ("error", "warning", "note") for kind, text in found
            if kind == wanted]  # fmt: skip


def percent(part: float, whole: float) -> str:
    """A share as text."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _on_images(images: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    total = sum(images["num_images"].values())
    if images["missing"]:
        yield "error", f"Missing images: {len(images['missing']):,} of {total:,}."
    if images["unreadable"]:
        yield "error", f"Images that cannot be read: {len(images['unreadable']):,} of {total:,}."
    if not images["is_read"]:
        yield "note", "Images were not read: damaged and repeated ones are not known (--images true reads them)."
    across = [group for group in images["duplicates"] if group["across_splits"]]
    inside = [group for group in images["duplicates"] if group["across_studies"] and not group["across_splits"]]
    within = [group for group in images["duplicates"] if not group["across_studies"]]
    for groups, where in (
        (across, "several splits"),
        (inside, "several studies of a split"),
        (within, "one study twice"),
    ):
        if groups:
            yield "warning", f"Groups of images of equal bytes in {where}: {len(groups):,}."
    sizes = images["sizes"]
    if len(sizes) == 1 and total > 1 and not images["in_memory"]:
        (size,) = sizes
        width, height = size.split("x")
        if width == height:
            yield (
                "note",
                f"All images are {size} pixels. Radiographs are of many shapes: these were squashed, cut or padded.",
            )


def _on_studies(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for split, counts in result["counts"].items():
        reports = result["reports"][split]
        if not counts["studies"]:
            yield "note", f"{split} is empty."
        if counts["repeated_ids"]:
            yield "error", f"Studies of {split} with an id that another study has: {len(counts['repeated_ids']):,}."
        if counts["num_views"].get("0"):
            yield "error", f"Studies of {split} without an image: {counts['num_views']['0']:,}."
        if reports["empty"]:
            yield "warning", f"Empty reports in {split}: {len(reports['empty']):,} of {counts['studies']:,}."
        if reports["num_short"]:
            yield "note", f"Reports of fewer than {SHORT} words in {split}: {reports['num_short']:,}."


def _on_leakage(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    labeler = result["labels"]["labeler"]
    for row in result["leakage"]:
        split, source, num, abnormal = row["split"], row["source"], row["num_studies"], row["abnormal"]
        if row["folded"] and source == "train":
            yield (
                "warning",
                f"{row['folded']:,} of {num:,} {split} reports ({percent(row['folded'], num)}) stand word for word in "
                f"{source}, case and spacing aside: {abnormal['folded']:,} of the {abnormal['num_studies']:,} that are "
                f"not normal by the labeler ({labeler}). Free of it: {row['free']:,} of {num:,}.",
            )
        if row["patients"]:
            studies = f"{row['patient_studies']:,} of its {num:,} studies"
            yield "warning", f"Patients of {split} who are also in {source}: {row['patients']:,}, with {studies}."
    if not any(counts["patients"] for counts in result["counts"].values()):
        yield "note", "The source names no patients: whether one is in two splits cannot be told."


def _on_labels(labels: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    shift = labels["shift"]
    for split, rows in shift["differences"].items():
        found = [
            f"{condition} {100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            for condition, row in sorted(rows.items(), key=lambda item: -abs(item[1]["difference"]))
            if row["is_shift"]
        ]
        if found:
            yield (
                "warning",
                f"Findings are not as frequent in {split} as in {shift['source']} (percent points): "
                f"{', '.join(found)}.",
            )
