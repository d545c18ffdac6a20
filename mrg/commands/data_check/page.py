"""The results of a check as a page: the printed tables, charts, and complete lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from mrg.commands.data_check.images import SIDE_BIN
from mrg.commands.data_check.reports import WORD_BIN
from mrg.commands.data_check.table import tables
from mrg.metrics.conditions import CONVENTIONS
from mrg.pages.charts import new_figure, svg
from mrg.pages.page import write_page

# Of medium lightness, for contrast with a light and a dark page.
_COLOURS = ("#7d8590", "#c77700", "#2f7fd6", "#8a63d2", "#2c974b")
_WIDTH = 4.6
_NUM_GROUPS = 200


def write_check_page(
    path: Path, result: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> None:
    """Write the page.

    Args:
        path: File to write.
        result: Result of `check_splits`, with `mrg` (the version), `name`, and `data` with `description`, `removed` and
            `config`.
        samples: Studies of each condition, see `mrg.commands.data_check.samples.show_samples`.
    """
    images = result["images"]
    write_page(
        path,
        "data_check.html",
        title=f"Data check: {result['name']}",
        description=result["data"]["description"],
        version=result["mrg"],
        messages=result["messages"],
        tables=tables(result),
        charts=_charts(result),
        samples=samples or {},
        lists={kind: _lines(images[kind]) for kind in ("missing", "unreadable") if images[kind]},
        duplicates=images["duplicates"][:_NUM_GROUPS],
        num_duplicates=len(images["duplicates"]),
        empty={split: row["empty"] for split, row in result["reports"].items() if row["empty"]},
        repeated_ids={split: row["repeated_ids"] for split, row in result["counts"].items() if row["repeated_ids"]},
        repeats=result["repeats"]["most"],
        splits=list(result["counts"]),
        baselines=result["baselines"],
        conventions=list(CONVENTIONS),
        config=json.dumps(result["data"]["config"], indent=1, ensure_ascii=False),
    )


def _lines(rows: Sequence[Mapping[str, str]]) -> tuple[int, str]:
    return len(rows), "\n".join(f"{row['split']}  {row['study']}  {row.get('error') or row['image']}" for row in rows)


def _charts(result: Mapping[str, Any]) -> dict[str, list[Markup]]:
    """Charts by the key of their table."""
    return {
        "counts": [_words(result["reports"])],
        "images": _images(result["images"]),
        "views": _num_views(result["counts"]),
        "labels": [_prevalence(result["labels"])],
        "leakage": [_leakage(result["leakage"])] if result["leakage"] else [],
    }


def _coloured(rows: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Split, row and color of each split; colors repeat if there are more splits than colors."""
    for index, (split, row) in enumerate(rows.items()):
        yield split, row, _COLOURS[index % len(_COLOURS)]


def _words(reports: Mapping[str, Any]) -> Markup:
    """Lengths of the reports per split, as outlines, because bars would hide each other."""
    figure = new_figure(_WIDTH, 2.6)
    axes = figure.add_subplot()
    for split, row, colour in _coloured(reports):
        bins = {int(start): count for start, count in row["words"]["histogram"].items()}
        if bins:
            edges = range(0, max(bins) + 2 * WORD_BIN, WORD_BIN)
            shares = [100 * bins.get(start, 0) / sum(bins.values()) for start in edges[:-1]]
            axes.stairs(shares, list(edges), label=split, color=colour, linewidth=1.6)
    axes.set(xlabel="words", ylabel=f"% of reports per {WORD_BIN} words")
    _legend(axes)
    return svg(figure, "Histogram of report lengths in words by split.")


def _num_views(counts: Mapping[str, Any]) -> list[Markup]:
    """Numbers of views, if they vary."""
    numbers = sorted({int(number) for row in counts.values() for number in row["num_views"]})
    if len(numbers) < 2:
        return []
    figure = new_figure(_WIDTH, 2.4)
    axes = figure.add_subplot()
    width = 0.8 / len(counts)
    for i, (split, row, colour) in enumerate(_coloured(counts)):
        places = [x + (i - (len(counts) - 1) / 2) * width for x in range(len(numbers))]
        heights = [100 * row["num_views"].get(str(number), 0) / max(1, row["studies"]) for number in numbers]
        axes.bar(places, heights, width, label=split, color=colour)
    axes.set_xticks(range(len(numbers)), map(str, numbers))
    axes.set(xlabel="images in a study", ylabel="% of studies")
    _legend(axes)
    return [svg(figure, "Number of images per study by split.")]


def _images(images: Mapping[str, Any]) -> list[Markup]:
    """Sizes, if there is more than one."""
    charts = []
    for key, width, title in (("side", SIDE_BIN, "longer side in pixels"), ("shape", 0.1, "width by height")):
        bins = {float(start): count for start, count in images[key].items()}
        if len(images["sizes"]) > 1 and bins:
            figure = new_figure(_WIDTH, 2.2)
            axes = figure.add_subplot()
            # The key of a side is the lower edge of its bin, that of a shape the middle.
            middles = [start + width / 2 if key == "side" else start for start in bins]
            axes.bar(middles, list(bins.values()), width, color=_COLOURS[2])
            axes.set(xlabel=title, ylabel="images")
            charts.append(svg(figure, f"Histogram of the images' {title}."))
    return charts


def _prevalence(labels: Mapping[str, Any]) -> Markup:
    """A dot per split on a line per condition, so that small differences look small."""
    shares = {
        split: [row["share"] for row in rows.values()]
        for split, rows in labels["prevalence"].items()
        if rows["No Finding"]["share"] is not None
    }
    conditions = list(next(iter(labels["prevalence"].values())))
    figure = new_figure(_WIDTH, 3.8)
    axes = figure.add_subplot()
    for split, values, colour in _coloured(shares):
        axes.plot([100 * value for value in values], range(len(conditions)), "o", label=split, color=colour, alpha=0.85)
    axes.set_yticks(range(len(conditions)), conditions)
    axes.invert_yaxis()
    axes.grid(axis="y", color="#7d8590", alpha=0.3)
    axes.set(xlim=(0, None), xlabel="% of reports, positive or uncertain")
    if shares:
        _legend(axes)
    return svg(figure, "Prevalence of each condition in the reports by split.")


def _leakage(rows: Sequence[Mapping[str, Any]]) -> Markup:
    figure = new_figure(_WIDTH, 0.9 + 0.4 * len(rows))
    axes = figure.add_subplot()
    names = [f"{row['split']} in {row['source']}" for row in rows]
    left = [0.0] * len(rows)
    for title, colour, counts in (
        ("overlap, normal", _COLOURS[0], [row["folded"] - row["abnormal"]["folded"] for row in rows]),
        ("overlap, abnormal", _COLOURS[1], [row["abnormal"]["folded"] for row in rows]),
    ):
        widths = [100 * count / row["num_studies"] for count, row in zip(counts, rows, strict=True)]
        axes.barh(names, widths, 0.6, left=left, color=colour, label=title)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="% of studies")
    _legend(axes)
    return svg(figure, "Percentage of studies whose report occurs in another split.")


def _legend(axes: Axes) -> None:
    """Legend above the axes, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
