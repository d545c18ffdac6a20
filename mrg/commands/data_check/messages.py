"""Errors, warnings and notes about a data set, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mrg.commands.data_check.reports import SHORT
from mrg.datamodules.errors import first_names


def check_messages(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Messages on the result of `check_splits`, most severe first.

    Returns:
        Rows with `text` and `kind`: `"error"` for what stops or invalidates a run, `"warning"` for what changes the
        meaning of its scores, or `"note"`.
    """
    found = [*_on_images(result["images"]), *_on_studies(result), *_on_leakage(result), *_on_labels(result["labels"])]
    return [{"kind": kind, "text": text} for wanted in ("error", "warning", "note") for kind, text in found
            if kind == wanted]  # fmt: skip


def percent(part: float, whole: float) -> str:
    """A fraction in percent, as text."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _on_images(images: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    total = sum(images["num_images"].values())
    if images["missing"]:
        yield "error", f"Missing images: {len(images['missing']):,} of {total:,}."
    if images["unreadable"]:
        yield "error", f"Unreadable images: {len(images['unreadable']):,} of {total:,}."
    if not images["is_read"]:
        yield "note", "Images were not read, so damaged and identical ones are unknown (--images true reads them)."
    across = [group for group in images["duplicates"] if group["across_splits"]]
    inside = [group for group in images["duplicates"] if group["across_studies"] and not group["across_splits"]]
    within = [group for group in images["duplicates"] if not group["across_studies"]]
    for groups, where in ((across, "in several splits"), (inside, "in several studies of a split"),
                          (within, "within one study")):  # fmt: skip
        if groups:
            yield "warning", f"Groups of identical images {where}: {len(groups):,}."
    sizes = images["sizes"]
    if len(sizes) == 1 and total > 1 and not images["in_memory"]:
        (size,) = sizes
        width, height = size.split("x")
        if width == height:
            yield (
                "note",
                f"All images have {size} pixels. Radiographs vary in shape, so these were resized, cropped or padded.",
            )


def _on_studies(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for split, counts in result["counts"].items():
        reports = result["reports"][split]
        if not counts["studies"]:
            yield "note", f"{split} is empty."
        if counts["repeated_ids"]:
            ids = counts["repeated_ids"]
            yield "error", f"Studies of {split} with the id of another study: {len(ids):,} ({first_names(ids)})."
        if counts["num_views"].get("0"):
            yield "error", f"Studies of {split} without images: {counts['num_views']['0']:,}."
        if reports["empty"]:
            yield "warning", f"Empty reports in {split}: {len(reports['empty']):,} of {counts['studies']:,}."
        if reports["num_short"]:
            yield "note", f"Reports with fewer than {SHORT} words in {split}: {reports['num_short']:,}."


def _on_leakage(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    labeler = result["labels"]["labeler"]
    for row in result["leakage"]:
        split, source, num, abnormal = row["split"], row["source"], row["num_studies"], row["abnormal"]
        if row["folded"] and source == "train":
            yield (
                "warning",
                f"Verbatim overlap with {source}, ignoring case and spacing: {row['folded']:,} of {num:,} {split} "
                f"reports ({percent(row['folded'], num)}), among them {abnormal['folded']:,} of the "
                f"{abnormal['num_studies']:,} abnormal ones (labeler {labeler}). Without overlap: {row['free']:,}.",
            )
        if row["patients"]:
            yield (
                "warning",
                f"Patients in both {split} and {source}: {row['patients']:,}, with {row['patient_studies']:,} of the "
                f"{num:,} {split} studies.",
            )
    if not any(counts["patients"] for counts in result["counts"].values()):
        yield "note", "The data set has no patient ids, so patient overlap between splits is unknown."


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
                f"Prevalence differs between {split} and {shift['source']} (percentage points): {', '.join(found)}.",
            )
