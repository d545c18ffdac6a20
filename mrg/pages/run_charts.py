"""The charts of a run: groups of scores, their captions and their drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from yaml import YAMLError

from mrg.files import parse_yaml
from mrg.pages.charts import new_figure, svg
from mrg.pages.training_log import Series, TrainingLog, thinned

# Readable on light and dark pages; lines differ in their dashes as well.
_COLORS = ("#2f81f7", "#d9730d", "#2da44e", "#a475f9", "#8b949e", "#d1477a")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MISSING = "train/missing"
_NOT_REWARDED = "Not part of the reward"
_DIVERGES = "val/reward_diverges"
_WARNING = "#d1242f"


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
    """Scores of one chart, log key -> label; a key that ends in `/` is a prefix. Shares are drawn from 0."""

    title: str
    note: str
    keys: dict[str, str]
    is_share: bool = False
    is_percent: bool = False


SMOOTHED = 40
"""Number of points from which a running mean is drawn."""


_GROUPS = (
    _Group(
        "Reward",
        "In percent, mean over the completions of a round; parts are unweighted.",
        {"reward/total": "total", "reward/": ""},
        is_percent=True,
    ),
    _Group(_NOT_REWARDED, "In percent. Their weight in the reward is 0.", {"reward/": ""}, is_percent=True),
    _Group(
        "Validation",
        "In percent, greedy decoding. Dotted: best constant report on the same studies, found for each score on the "
        "training reports; without these, the constant normal report.",
        {"val/mccs": "MCCS", "val/ce_f1": "CE-F1", "val/ce_f1_macro": "CE-F1 macro", "val/format": "valid format"},
        is_share=True,
        is_percent=True,
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
        is_percent=True,
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
    _Group("Learning rate", "Of the first parameter group.", {"train/learning_rate": "learning rate"}),
    _Group("GPU memory", "GB, the peak so far on the first GPU.", {"train/gpu_memory": "GPU memory"}),
)


def run_charts(log: TrainingLog) -> list[Chart]:
    """All charts for which the run has scores."""
    # The loss of GRPO is not a likelihood. Completions without any reward are rare, and shown if there are any.
    hidden = {"train/loss", "val/loss"} if "reward/total" in log.scores else set()
    if not any(value for _, value in log.scores.get(_MISSING, [])):
        hidden.add(_MISSING)
    zero = unrewarded(log.config)
    warned = [step for step, value in log.scores.get(_DIVERGES, []) if value == 1]
    steps = [step for series in log.scores.values() for step in (series[0][0], series[-1][0])]
    charts = []
    for group in _GROUPS:
        scale = 100 if group.is_percent else 1
        left_out = hidden | zero if group.title == "Reward" else hidden
        if group.title == _NOT_REWARDED:
            left_out = log.scores.keys() - zero
        lines = [
            Line(
                label,
                [(step, scale * value) for step, value in log.scores[key]],
                _scaled(log.constants(key), scale),
            )
            for key, label in _labels(group.keys, sorted(log.scores)).items()
            if key in log.scores and key not in left_out
        ]
        if lines:
            marks = warned if group.title in ("Reward", "Validation") else []
            image = draw(group.title, lines, group.is_share, (min(steps), max(steps)), marks)
            charts.append(Chart(group.title, group.note + marks_note(marks), image))
    return charts


def unrewarded(config: str) -> set[str]:
    """Log keys of the parts of the reward with weight 0 in the text of a run's config.yaml."""
    try:
        reward = parse_yaml(config)["model"]["init_args"]["reward"]
        zero = {key.removesuffix("_weight") for key, value in reward.items() if key.endswith("_weight") and value == 0}
        for row in reward.get("scorers") or []:
            if row.get("weight", 1) == 0:
                zero.add(row.get("name") or row["scorer"].rpartition(":")[2])
    except (YAMLError, LookupError, TypeError, AttributeError, ValueError, RecursionError):
        return set()  # no GRPO run, or one of an older version
    return {f"reward/{name}" for name in zero}


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


def marks_note(marks: Sequence[int]) -> str:
    """Sentence on the marked steps of a chart; empty if there are none."""
    if not marks:
        return ""
    steps = ", ".join(map(str, marks[:5])) + (f" and {len(marks) - 5} more" if len(marks) > 5 else "")
    return f" Red lines ({steps}): the reward rose while a validation score that is not part of it fell."


def draw(title: str, lines: Sequence[Line], is_share: bool, ends: tuple[int, int], marks: Sequence[int] = ()) -> Markup:
    """Draw lines over steps; a value that is not finite leaves a gap, and a single value is a dot.

    Of many points the running mean is drawn over the values. The page's script reads the attribute `data-chart`.

    Args:
        title: Title of the chart.
        lines: At least one line.
        is_share: Whether values are percentages, on an axis from 0.
        ends: First and last step of the run, the same for all charts.
        marks: Steps with a vertical line, at which a warning was logged.
    """
    figure = new_figure(4.7, 2.7)
    axes = figure.add_subplot()
    for index, line in enumerate(lines):
        color = _plot(axes, index, line)
        if line.level is not None:
            axes.axhline(line.level[1], color=color, linestyle=":", linewidth=1.2)
    if is_share:
        values = [value for line in lines for _, value in line.series if math.isfinite(value)] or [100.0]
        levels = [line.level[1] for line in lines if line.level is not None]
        axes.set_ylim(-3, max(20, 1.08 * max(values + levels)))
    else:
        _cut_first_steps(axes, lines, ends)
    for step in marks:
        axes.axvline(step, color=_WARNING, linewidth=1.2)
        axes.plot(step, 1, "v", color=_WARNING, markersize=6, clip_on=False, transform=axes.get_xaxis_transform())
    axes.set_xlabel("step")
    pad = max(0.5, 0.02 * (ends[1] - ends[0]))
    axes.set_xlim(ends[0] - pad, ends[1] + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#8b949e", alpha=0.3, linewidth=0.6)
    if len(lines) > 1 or lines[0].label.lower() not in title.lower():
        columns = 3 if max(len(line.label) for line in lines) < 12 else 2
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=9, handlelength=2.6)
    image = svg(figure, describe(title, lines) + marks_note(marks))  # which lays the axes out
    box = axes.get_position()
    data = {
        "box": [box.x0, 1 - box.y1, box.x1, 1 - box.y0],
        "steps": axes.get_xlim(),
        "warned": list(marks),
        "lines": [
            [
                line.label,
                _COLORS[i % len(_COLORS)],
                [[s, float(f"{v:.4g}")] for s, v in thinned(line.series) if math.isfinite(v)],
            ]
            for i, line in enumerate(lines)
        ],
    }
    return Markup(image.replace("<svg ", Markup('<svg data-chart="{}" ').format(json.dumps(data)), 1))


def _plot(axes: Axes, index: int, line: Line) -> str:
    """Draw one line; returns its color."""
    color, dashes = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
    points = thinned(line.series)
    steps = [step for step, _ in points]
    values = [value if math.isfinite(value) else math.nan for _, value in points]
    if len(points) >= SMOOTHED:
        axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
        values = running_mean(values)
    axes.plot(
        steps,
        values,
        color=color,
        linestyle=dashes,
        linewidth=2.2 if index == 0 else 1.4,
        marker="o" if len(points) <= 30 else None,
        markersize=3.5,
        label=line.label,
    )
    return color


def running_mean(values: Sequence[float]) -> list[float]:
    """Centered running mean over about a tenth of the values; nan where none of them is a number."""
    half = max(1, len(values) // 20)
    means = []
    for place in range(len(values)):
        near = [value for value in values[max(0, place - half) : place + half + 1] if not math.isnan(value)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _cut_first_steps(axes: Axes, lines: Sequence[Line], ends: tuple[int, int]) -> None:
    """Limit the axis to the values after the first tenth of the steps, if earlier ones would flatten the rest."""
    start = ends[0] + 0.1 * (ends[1] - ends[0])
    points = [(step, value) for line in lines for step, value in line.series if math.isfinite(value)]
    late = [value for step, value in points if step >= start]
    early = [value for step, value in points if step < start]
    if len(late) < 10 or not early:
        return
    low, high = min(late), max(late)
    if max(early) - high > 0.5 * (high - low):
        pad = 0.08 * (high - low) or 1.0
        axes.set_ylim(min(*late, *early) - pad, high + 3 * pad)
        axes.text(
            0.98,
            0.98,
            f"first steps up to {max(early):.3g}",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=9,
        )


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
        entry("Reward", "reward/total", 10, 1, 100),
        entry("Training loss", "train/loss", 10) if "reward/total" not in log.scores else None,
        entry("Validation MCCS", "val/mccs", 1, 1, 100),
        entry("Validation CE-F1", "val/ce_f1", 1, 1, 100),
        entry("Tokens per second", "train/tokens_per_second", 10, 0),
    ]
    return [row for row in wanted if row]
