"""The report of an ablation: ablation.json, ablation.md and ablation.svg.

Intervals are 95 % intervals of Student's t over seeds. Data, weights, rollouts and test studies differ between seeds,
so the intervals include the variance of all of them; with three seeds, half the width is 2.5 standard deviations.
Differences are paired by seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrg.commands.ablate.configuration import Ablation
from mrg.errors import UserError
from mrg.files import write_json, write_text
from mrg.metrics import RulesLabeler, nlg_scores
from mrg.metrics.constants import BEST
from mrg.metrics.evaluation import COLUMNS, evaluate_systems
from mrg.metrics.remarks import collapses
from mrg.pages.tested_run import TestedRun

SCORES = ("MCCS", "CE-F1 micro-13+", "BLEU-4", "ROUGE-L")
CLINICAL = SCORES[:2]
# 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def t_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95 % interval of Student's t; a single value has no interval.

    Example:
        >>> t_interval([1.0, 2.0, 3.0])["low"]  # 2 - 4.3027 / sqrt(3)
        -0.48416519...
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"value": mean, "low": None, "high": None}
    half = _T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return {"value": mean, "low": mean - half, "high": mean + half}


def write_report(ablation: Ablation) -> str:
    """Score the complete runs and write the three files; returns the table and the paths of the files.

    Raises:
        UserError: If no run is complete.
    """
    scored = {seed: found for seed in ablation.seeds if (found := _score_seed(ablation, seed))[0]}
    seeds = {seed: scores for seed, (scores, _) in scored.items()}
    if not seeds:
        raise UserError(
            f"Expected a complete run in {ablation.folder}, but found none: see log.txt in the run folders."
        )
    results = summarize(ablation, seeds)
    results["remarks"] += [f"seed {seed}: {remark}" for seed, (_, found) in scored.items() for remark in found]
    table = format_summary(ablation, results)
    write_json(ablation.folder / "ablation.json", results)
    write_text(ablation.folder / "ablation.md", table)
    plot_summary(ablation, results, ablation.folder / "ablation.svg")
    files = ", ".join(str(ablation.folder / f"ablation.{end}") for end in ("md", "svg", "json"))
    return f"{table}\n{files}"


def _score_seed(ablation: Ablation, seed: int) -> tuple[dict[str, dict[str, float]], list[str]]:
    """System -> score -> value, for the arms whose run is complete and for the baselines; and remarks on the arms."""
    runs = {
        name: TestedRun.read(ablation.run_folder(name, seed))
        for name in ablation.arms
        if ablation.is_complete(name, seed)
    }
    if not runs:
        return {}, []
    first, *others = runs
    studies = [(row["id"], row["target"]) for row in runs[first].rows]
    for name in others:
        if [(row["id"], row["target"]) for row in runs[name].rows] != studies:
            raise UserError(
                f"Expected the arms of seed {seed} to be tested on the same studies, but those of {first} and {name} "
                "differ: set the test split in `shared`."
            )
    target = runs[first].target
    systems = {name: [text] * len(target) for name, text in runs[first].baselines.items()}
    systems |= {name: run.reports for name, run in runs.items()}
    # Arms may have been tested with another labeler or margin than those of the report.
    found = [best for run in runs.values() if (best := run.best_constants)]
    best = next((b for b in found if (b.labeler, b.margin) == (RulesLabeler().name, ablation.margin)), None)
    # Intervals are those over seeds: no bootstrap over studies.
    results = evaluate_systems(systems, target, RulesLabeler(), ablation.margin, num_resamples=1, best=best)
    scores: dict[str, dict[str, float]] = {}
    if best is not None:
        scores[BEST] = {score: results["best_constant"]["scores"][score]["value"] for score in COLUMNS[:3]}
    for name, row in results["systems"].items():
        scores[name] = {score: row["scores"][score]["value"] for score in COLUMNS[:3]}
        scores[name]["distinct"] = row["distinct"]
        scores[name]["words"] = statistics.fmean(len(text.split()) for text in systems[name])
        scores[name] |= _wording(systems[name], target)
    for name, run in runs.items():
        if run.format is not None:
            scores[name]["format"] = run.format
    return scores, [remark for name in runs for remark in collapses(results, name)]


def _wording(preds: list[str], target: list[str]) -> dict[str, float]:
    try:
        corpus = nlg_scores(preds, target, meteor=False).corpus
    except ImportError:  # without the extra `nlg` the table lacks two columns
        return {}
    return {score: corpus[score] for score in ("BLEU-4", "ROUGE-L")}


def summarize(ablation: Ablation, seeds: Mapping[int, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Means and intervals of each arm's scores, and of their differences from the base."""
    systems: dict[str, Any] = {}
    for name in dict.fromkeys(name for scores in seeds.values() for name in scores):
        of_seed = {seed: scores[name] for seed, scores in seeds.items() if name in scores}
        row: dict[str, Any] = {"seeds": of_seed, "scores": {}, "differences": {}}
        for score in next(iter(of_seed.values())):
            row["scores"][score] = t_interval([values[score] for values in of_seed.values()])
            if name != ablation.base:
                pairs = [
                    values[score] - seeds[seed][ablation.base][score]
                    for seed, values in of_seed.items()
                    if score in seeds[seed].get(ablation.base, {})
                ]
                if pairs:
                    row["differences"][score] = t_interval(pairs)
        systems[name] = row
    labels = {name: arm.label or name for name, arm in ablation.arms.items()}
    return {
        "seeds": list(seeds),
        "remarks": _against_best(seeds, labels),
        "base": ablation.base,
        "margin": ablation.margin,
        "labeler": "rules",
        "interval": "95 %, Student's t over seeds",
        "labels": labels,
        "systems": systems,
    }


def _against_best(seeds: Mapping[int, Mapping[str, Mapping[str, float]]], labels: Mapping[str, str]) -> list[str]:
    """Sentences on the arms that do not beat the best constant report, by their differences from it in each seed."""
    if not any(BEST in scores for scores in seeds.values()):
        return [f"The {BEST} report is not known: no arm was tested with the labeler and the margin of this table."]
    found = []
    for name, label in labels.items():
        both = [scores for scores in seeds.values() if name in scores and BEST in scores]
        gaps = {score: t_interval([row[name][score] - row[BEST][score] for row in both]) for score in CLINICAL if both}
        lows = {score: gap["value"] if gap["low"] is None else gap["low"] for score, gap in gaps.items()}
        if not_above := [score for score, low in lows.items() if low is not None and low <= 0]:
            interval = " (95 % intervals of the difference over seeds)" if len(both) > 1 else ""
            found.append(f"{label} does not beat the {BEST} report in {', '.join(not_above)}{interval}.")
    return found


def format_summary(ablation: Ablation, results: Mapping[str, Any]) -> str:
    """Markdown table with a row for each system, in percent."""
    systems, labels = results["systems"], results["labels"]
    scores = [score for score in SCORES if any(score in row["scores"] for row in systems.values())]
    base, number = labels[results["base"]], len(results["seeds"])
    spread = (
        "± is the 95 % interval of Student's t over seeds, differences paired by seed" if number > 1 else "no intervals"
    )
    rows = [["arm", *scores, *(f"{score} - {base}" for score in CLINICAL), "distinct", "format"]]
    for name, row in systems.items():
        cells = [_cell(row["scores"].get(score)) for score in scores]
        cells += [_cell(row["differences"].get(score), "+") for score in CLINICAL]
        cells += [_cell(row["scores"].get(share), digits=0, interval=False) for share in ("distinct", "format")]
        rows.append([labels.get(name, name), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        f"In percent, mean over {number} seed{'s' * (number > 1)}; {spread}.",
        f"MCCS with margin {results['margin']:g} and CE-F1 (uncertain counts as positive) by the rules labeler.",
        "",
        *("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows),
    ]
    lines += [line for remark in results["remarks"] for line in ("", remark)]
    missing = [
        f"seed {seed}, {name}"
        for seed in ablation.seeds
        for name in ablation.arms
        if seed not in systems.get(name, {"seeds": {}})["seeds"]
    ]
    if missing:
        lines += ["", f"Missing or failed runs: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _cell(score: Mapping[str, Any] | None, sign: str = "", digits: int = 1, interval: bool = True) -> str:
    if score is None:
        return ""
    text = f"{100 * score['value']:{sign}.{digits}f}"
    if not interval or score["low"] is None:
        return text
    return f"{text} ± {100 * (score['high'] - score['value']):.{digits}f}"


def plot_summary(ablation: Ablation, results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure: a row for each arm with its scores, their intervals, and a dot for each seed."""
    from matplotlib.lines import Line2D

    from mrg.pages.charts import new_figure

    systems, labels = results["systems"], results["labels"]
    panels = {title: [name for name in names if name in systems] for title, names in ablation.panels.items()}
    panels = {title: names for title, names in panels.items() if names}
    heights = [len(names) + 0.8 for names in panels.values()]
    figure = new_figure(7.5, 1.2 + 0.36 * sum(heights))
    colors, markers = ("#0b5cad", "#b3541e"), ("o", "s")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (title, names) in zip(grid[:, 0], panels.items(), strict=True):
        for row, name in enumerate(names):
            for shift, score, color, marker in zip((-0.14, 0.14), CLINICAL, colors, markers, strict=True):
                value = systems[name]["scores"][score]
                dots = [100 * of_seed[score] for of_seed in systems[name]["seeds"].values()]
                axes.plot(dots, [row + shift] * len(dots), ".", color=color, alpha=0.45, markersize=4, zorder=2)
                if value["low"] is not None:
                    axes.plot([100 * value["low"], 100 * value["high"]], [row + shift] * 2, color=color, linewidth=1.3)
                axes.plot(100 * value["value"], row + shift, marker, color=color, markersize=5.5, zorder=3)
        constant = BEST if BEST in systems else "constant normal"
        level = systems[constant]["scores"]["MCCS"]["value"]
        axes.axvline(100 * level, color=colors[0], linewidth=1, linestyle=":", zorder=1)
        axes.set_yticks(range(len(names)), [labels[name] for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.grid(axis="x", color="#d8dce1", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    shown = [systems[name]["scores"][score] for names in panels.values() for name in names for score in CLINICAL]
    # The interval of two seeds may exceed the scale.
    highest = max(max(value["value"], min(1, value["high"] or 0)) for value in shown)
    grid[-1, 0].set_xlim(-2, 100 * max(highest, level) + 2)
    number = len(results["seeds"])
    spread = f"{number} seeds: mean, 95 % t-interval and each seed" if number > 1 else "one seed"
    grid[-1, 0].set_xlabel(f"percent on held-out studies ({spread})")
    handles = [Line2D([], [], color=c, marker=m, linewidth=1.3, label=s)
               for s, c, m in zip(CLINICAL, colors, markers, strict=True)]  # fmt: skip
    handles.append(Line2D([], [], color=colors[0], linestyle=":", label=f"MCCS of the {constant} report"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
