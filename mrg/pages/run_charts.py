"""The charts of a run: groups of scores, their captions and their drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from mrg.pages.charts import new_figure, svg
from mrg.pages.training_log import Series, TrainingLog, thinned

# Readable on light and dark pages; lines differ in their dashes as well.
_COLORS = ("#2f81f7", "#d9730d", "#2da44e", "#a475f9", "#8b949e", "#d1477a")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MISSING = "train/missing"


class Line(NamedTuple):
    """One line of a chart; `level` names a constant report and its score, a dotted line of the same colour."""

    label: str
    series: Series
    level: tuple[str, float] | None = None


class Chart(NamedTuple):
    """A chart on the page."""

    title: str
    note: str
    image: Markup


class _Group(NamedTuple):
    """Scores of one chart, log key -> label; a key that ends in `/` is a prefix. Shares are in percent."""

    title: str
    note: str
    keys: dict[str, str]
    is_share: bool = False


_GROUPS = (
    _Group(
        "Reward",
        "Mean over the completions of a round; parts are unweighted.",
        {"reward/total": "total", "reward/": ""},
    ),
    _Group(
        "Validation",
        "In percent, greedy decoding. Dotted: best constant report on the same studies, found for each score on the "
        "training reports; without these, the constant normal report.",
        {"val/mccs": "MCCS", "val/ce_f1": "CE-F1", "val/ce_f1_macro": "CE-F1 macro", "val/format": "valid format"},
        is_share=True,
    ),
    _Group("Loss", "Negative log-likelihood per token.", {"train/loss": "training", "val/loss": "validation"}),
    _Group(
        "Groups and completions",
        "In percent. Groups of equal rewards have no gradient; few distinct completions, or many that are truncated or "
        "state no finding, indicate a collapse.",
        {
            "train/distinct": "distinct in their group",
            "train/dead_groups": "groups of equal rewards",
            "train/nothing_found": "without findings",
            "train/truncated": "truncated",
            _MISSING: "without any reward",
        },
        is_share=True,
    ),
    _Group("KL to the reference", "Nats per token.", {"train/kl": "KL"}),
    _Group("Entropy", "Nats per token.", {"train/entropy": "entropy"}),
    _Group(
        "Length of completions",
        "Tokens.",
        {"train/length_max": "longest", "train/length": "mean", "train/length_min": "shortest"},
    ),
    _Group("Seconds per round", "By phase.", {"seconds/": ""}),
    _Group("Tokens per second", "Prompts counted once.", {"train/tokens_per_second": "tokens/s"}),
    _Group("Gradient norm", "Before clipping.", {"train/grad_norm": "norm"}),
)


def run_charts(log: TrainingLog) -> list[Chart]:
    """All charts for which the run has scores."""
    # The loss of GRPO is not a likelihood. Completions without any reward are rare, and shown if there are any.
    hidden = {"train/loss", "val/loss"} if "reward/total" in log.scores else set()
    if not any(value for _, value in log.scores.get(_MISSING, [])):
        hidden.add(_MISSING)
    steps = [step for series in log.scores.values() for step in (series[0][0], series[-1][0])]
    charts = []
    for group in _GROUPS:
        scale = 100 if group.is_share else 1
        lines = [
            Line(
                label,
                [(step, scale * value) for step, value in log.scores[key]],
                _scaled(log.constants(key), scale),
            )
            for key, label in _labels(group.keys, sorted(log.scores)).items()
            if key in log.scores and key not in hidden
        ]
        if lines:
            image = draw(group.title, lines, group.is_share, (min(steps), max(steps)))
            charts.append(Chart(group.title, group.note, image))
    return charts


def _scaled(levels: Mapping[str, float], scale: float) -> tuple[str, float] | None:
    """The last of some levels, scaled; None if there are none."""
    return next(((name, scale * levels[name]) for name in list(levels)[::-1]), None)


def _labels(keys: Mapping[str, str], logged: Sequence[str]) -> dict[str, str]:
    """Log keys -> labels, with each prefix replaced by the keys that start with it, apart from standard deviations."""
    found: dict[str, str] = {}
    for key, label in keys.items():
        if key.endswith("/"):
            own = [name for name in logged if name.startswith(key) and not name.endswith("_std") and name not in found]
            found |= {name: name.removeprefix(key) for name in own}
        else:
            found[key] = label
    return found


def draw(title: str, lines: Sequence[Line], is_share: bool, ends: tuple[int, int]) -> Markup:
    """Draw lines over steps; a value that is not finite leaves a gap, and a single value is a dot.

    Args:
        title: Title of the chart.
        lines: At least one line.
        is_share: Whether values are percentages, on an axis from 0.
        ends: First and last step of the run, the same for all charts.
    """
    figure = new_figure(4.7, 2.5)
    axes = figure.add_subplot()
    for index, line in enumerate(lines):
        color, dashes = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
        points = thinned(line.series)
        axes.plot(
            [step for step, _ in points],
            [value if math.isfinite(value) else math.nan for _, value in points],
            color=color,
            linestyle=dashes,
            linewidth=2.2 if index == 0 else 1.4,
            marker="o" if len(points) <= 30 else None,
            markersize=3.5,
            label=line.label,
        )
        if line.level is not None:
            axes.axhline(line.level[1], color=color, linestyle=":", linewidth=1.2)
    if is_share:
        values = [value for line in lines for _, value in line.series if math.isfinite(value)] or [100.0]
        levels = [line.level[1] for line in lines if line.level is not None]
        axes.set_ylim(-3, max(20, 1.08 * max(values + levels)))
    axes.set_xlabel("step")
    pad = max(0.5, 0.02 * (ends[1] - ends[0]))
    axes.set_xlim(ends[0] - pad, ends[1] + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#8b949e", alpha=0.3, linewidth=0.6)
    if len(lines) > 1:
        columns = 3 if max(len(line.label) for line in lines) < 12 else 2
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=9, handlelength=2.6)
    return svg(figure, describe(title, lines))


def describe(title: str, lines: Sequence[Line]) -> str:
    """Text alternative of a chart: first, last, smallest and largest value of each line."""
    parts = []
    for line in lines:
        values = [value for _, value in line.series if math.isfinite(value)]
        if not values:
            parts.append(f"{line.label}: no finite value")
            continue
        text = f"{line.label}: {values[0]:.3g} to {values[-1]:.3g} (between {min(values):.3g} and {max(values):.3g})"
        parts.append(text + (", {} {:.3g}".format(*line.level) if line.level else ""))
    steps = [step for line in lines for step, _ in line.series]
    return f"{title}, steps {min(steps)} to {max(steps)}. {'; '.join(parts)}."


def latest(log: TrainingLog) -> list[Mapping[str, Any]]:
    """Key figures at the top of the page: name, value, and a note for comparison."""

    def entry(name: str, key: str, window: int, digits: int = 3, scale: int = 1) -> dict[str, Any] | None:
        value = log.last(key, window)
        if value is None:
            return None
        best = max((v for _, v in log.scores[key] if math.isfinite(v)), default=value)
        notes = [f"mean of {min(window, len(log.scores[key]))}"] if window > 1 else [f"best {scale * best:.{digits}f}"]
        notes += [f"{name} {scale * score:.{digits}f}" for name, score in log.constants(key).items()]
        unit = " %" if scale == 100 else ""
        return {"name": name, "value": f"{scale * value:,.{digits}f}{unit}", "note": ", ".join(notes)}

    wanted = [
        entry("Reward", "reward/total", 10),
        entry("Training loss", "train/loss", 10) if "reward/total" not in log.scores else None,
        entry("Validation MCCS", "val/mccs", 1, 1, 100),
        entry("Validation CE-F1", "val/ce_f1", 1, 1, 100),
        entry("Tokens per second", "train/tokens_per_second", 10, 0),
    ]
    return [row for row in wanted if row]
