"""The figure of a run's uncertainty: reliability diagram, risk against coverage, precision and recall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mrg.pages.charts import new_figure, svg

BLUE, ORANGE, GRAY = "#0b5cad", "#b3541e", "#8a9099"


def uncertainty_figure(results: Mapping[str, Any]) -> str:
    """Draw three panels as SVG.

    Args:
        results: Return value of `mrg.metrics.uncertainty.uncertainty`.
    """
    figure = new_figure(10.5, 3.4)
    left, middle, right = figure.subplots(1, 3)
    left.plot([0, 100], [0, 100], color=GRAY, linewidth=1, linestyle=":")
    for side, color, marker in (("shares", GRAY, "s"), ("calibrated", BLUE, "o")):
        if side in results["scores"]:
            bins = results["scores"][side]["reliability"]
            ece = f"{side}, ECE {100 * results['scores'][side]['ece']:.1f} %"
            x, y = ([100 * row[key] for row in bins] for key in ("probability", "frequency"))
            left.plot(x, y, color=color, marker=marker, markersize=4, linewidth=1.2, label=ece)
    left.set(title="Reliability", xlabel="probability of a finding (%)", ylabel="findings in the reference (%)")
    curve = results["risk_coverage"]
    coverage, risk = ([100 * value for value in curve[key]] for key in ("coverage", "risk"))
    middle.plot(coverage, risk, color=BLUE, linewidth=1.4, label="by agreement")
    middle.axhline(100 * curve["random"], color=GRAY, linewidth=1, linestyle=":", label="random order")
    middle.set(title="Risk and coverage", xlabel="reports kept (%)", ylabel="1 - MCCS of the kept reports (%)")
    points = results["precision_recall"]
    recall, precision = ([100 * point[key] for point in points] for key in ("recall", "precision"))
    right.plot(recall, precision, color=BLUE, linewidth=1.4, label="one threshold on the probability")
    for (name, point), marker in zip(results["points"].items(), ("D", "*"), strict=True):
        right.plot(100 * point["recall"], 100 * point["precision"], marker, color=ORANGE, markersize=7, label=name)
    right.set(title="Precision and recall", xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 102), ylim=(0, 102))
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=8)
    description = "Reliability diagram, risk against coverage, and precision against recall"
    return f"{svg(figure, description)}\n"
