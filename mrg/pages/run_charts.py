"""The charts of a run: which scores stand together, and what each chart says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from mrg.pages.charts import new_figure, svg
from mrg.pages.run_log import RunLog, Series, thinned

# Readable on a light and on a dark page; lines differ in their dashes too.
_COLORS = ("#2f81f7", "#d9730d", "#2da44e", "#a475f9", "#8b949e", "#d1477a")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


class Line(NamedTuple):
    """One line of a chart."""

    label: str
    series: Series
    level: float | None = None
    """What the constant normal report earns: a dotted level of the same colour."""


class Chart(NamedTuple):
    """A chart on the page."""

    title: str
    note: str
    image: Markup


def run_charts(log: RunLog) -> list[Chart]:
    """All charts for which the run has scores."""
    normal = log.state.get("constant_normal") or {}
    parts = sorted(
        key for key in log.scores if key.startswith("reward/") and key != "reward/total" and not key.endswith("_std")
    )
    is_grpo = "reward/total" in log.scores
    phases = sorted(key for key in log.scores if key.startswith("seconds/"))
    wanted: list[tuple[str, str, dict[str, str], bool]] = [
        (
            "Reward",
            "Mean over a round's completions; the parts are unweighted.",
            {"reward/total": "total", **{key: key.removeprefix("reward/") for key in parts}},
            False,
        ),
        (
            "Validation",
            "Greedy reports. Dotted: what the constant normal report earns on the same studies.",
            {"val/mccs": "MCCS", "val/ce_f1": "CE-F1", "val/ce_f1_macro": "CE-F1 macro", "val/format": "format"},
            True,
        ),
        (
            "Loss",
            "Negative log-likelihood of a token.",
            {} if is_grpo else {"train/loss": "training", "val/loss": "validation"},
            False,
        ),
        (
            "Groups and completions",
            "Shares. Dead groups have equal rewards and teach nothing; few distinct completions, many that find "
            "nothing or many cut off at the length limit foretell a collapse.",
            {
                "train/distinct": "distinct in their group",
                "train/dead_groups": "dead groups",
                "train/nothing_found": "find nothing",
                "train/truncated": "truncated",
                "train/missing": "without any reward",
            },
            True,
        ),
        ("KL to the reference", "Nats a token.", {"train/kl": "KL"}, False),
        ("Entropy", "Nats a token.", {"train/entropy": "entropy"}, False),
        (
            "Length of completions",
            "Tokens.",
            {"train/length_max": "longest", "train/length": "mean", "train/length_min": "shortest"},
            False,
        ),
        (
            "Seconds of a round",
            "By phase.",
            {key: key.removeprefix("seconds/") for key in phases},
            False,
        ),
        ("Tokens per second", "Prompts counted once.", {"train/tokens_per_second": "tokens/s"}, False),
        ("Gradient norm", "Before it is clipped.", {"train/grad_norm": "norm"}, False),
    ]
    steps = [step for series in log.scores.values() for step in (series[0][0], series[-1][0])]
    ends = (min(steps), max(steps)) if steps else (0, 0)
    charts = []
    for title, note, keys, is_share in wanted:
        lines = [Line(label, log.scores[key], normal.get(key)) for key, label in keys.items() if key in log.scores]
        # A share that is 0 all along, such as completions without any reward, tells nothing.
        lines = [line for line in lines if line.label != "without any reward" or any(value for _, value in line.series)]
        if lines:
            charts.append(Chart(title, note, draw(title, lines, is_share, ends)))
    return charts


def draw(title: str, lines: Sequence[Line], is_share: bool, ends: tuple[int, int]) -> Markup:
    """Lines over steps; a value that is not finite leaves a gap, a single value is a dot.

    Args:
        title: Of the chart.
        lines: At least one.
        is_share: The axis begins at 0.
        ends: First and last step of the run, equal on all charts.
    """
    figure = new_figure(4.7, 2.5)
    axes = figure.add_subplot()
    for index, line in enumerate(lines):
        color, dashes = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
        points = thinned(line.series)
        few = len(points) <= 30
        axes.plot(
            [step for step, _ in points],
            [value if math.isfinite(value) else math.nan for _, value in points],
            color=color,
            linestyle=dashes,
            linewidth=2.2 if index == 0 else 1.4,
            marker="o" if few else None,
            markersize=3.5,
            label=line.label,
        )
        if line.level is not None:
            axes.axhline(line.level, color=color, linestyle=":", linewidth=1.2)
    if is_share:
        highest = max((v for line in lines for _, v in line.series if math.isfinite(v)), default=1.0)
        axes.set_ylim(-0.03, max(0.2, *[1.08 * x for x in (highest, *_levels(lines))]))
    axes.set_xlabel("step")
    pad = max(0.5, 0.02 * (ends[1] - ends[0]))
    axes.set_xlim(ends[0] - pad, ends[1] + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#8b949e", alpha=0.3, linewidth=0.6)
    if len(lines) > 1:
        columns = 3 if max(len(line.label) for line in lines) < 12 else 2
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=9, handlelength=2.6)
    return svg(figure, describe(title, lines))


def _levels(lines: Sequence[Line]) -> list[float]:
    return [line.level for line in lines if line.level is not None]


def describe(title: str, lines: Sequence[Line]) -> str:
    """The chart in words: first, last, least and greatest value of each line."""
    parts = []
    for line in lines:
        values = [value for _, value in line.series if math.isfinite(value)]
        if not values:
            parts.append(f"{line.label}: no finite value")
            continue
        text = f"{line.label}: {values[0]:.3g} to {values[-1]:.3g} (between {min(values):.3g} and {max(values):.3g})"
        parts.append(text + (f", constant normal {line.level:.3g}" if line.level is not None else ""))
    steps = [step for line in lines for step, _ in line.series]
    return f"{title}, steps {min(steps)} to {max(steps)}. {'; '.join(parts)}."


def latest(log: RunLog) -> list[Mapping[str, Any]]:
    """The few numbers at the top: name, value, and what to compare it with."""
    normal = log.state.get("constant_normal") or {}

    def entry(name: str, key: str, window: int, digits: int = 3) -> dict[str, Any] | None:
        value = log.last(key, window)
        if value is None:
            return None
        best = max((v for _, v in log.scores[key] if math.isfinite(v)), default=value)
        notes = [f"mean of {min(window, len(log.scores[key]))}"] if window > 1 else [f"best {best:.{digits}f}"]
        if key in normal:
            notes.append(f"constant normal {normal[key]:.{digits}f}")
        return {"name": name, "value": f"{value:,.{digits}f}", "note": ", ".join(notes)}

    wanted = [
        entry("Reward", "reward/total", 10),
        entry("Training loss", "train/loss", 10) if "reward/total" not in log.scores else None,
        entry("Validation MCCS", "val/mccs", 1),
        entry("Validation CE-F1", "val/ce_f1", 1),
        entry("Tokens per second", "train/tokens_per_second", 10, 0),
    ]
    return [row for row in wanted if row]
