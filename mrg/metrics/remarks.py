"""Sentences below a table of results that point out what its numbers do not show at first sight."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from mrg.metrics.conditions import THIRTEEN
from mrg.metrics.constants import BEST, BestConstants

BASELINES = ("constant normal", "most frequent report", "most frequent reference", "best reference")
"""Names of systems that write the same report for every study; there are no remarks on them."""


def judged(results: Mapping[str, Any]) -> list[str]:
    """Names of the systems that are not baselines."""
    return [name for name in results["systems"] if name not in BASELINES]


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Sentences on the systems that are not baselines.

    A sentence names a system that does not beat the best constant, has an informedness not above 0, finds nothing
    or nothing correctly, or writes fewer than 1 % distinct reports. Another one names those, the best constant among
    them, whose macro average is outside of its interval.
    """
    found, best = [], results["best_constant"] or {}
    gaps = best.get("differences", [])
    for name in judged(results):
        row = results["systems"][name]
        shown = ("MCCS", "CE-F1 micro-13+", "CE-F1 macro-13+")
        not_above = [gap["score"] for gap in gaps if gap["a"] == name and gap["low"] <= 0 and gap["score"] in shown]
        if not_above:
            found.append(
                f"{name} does not beat the {BEST} report in {', '.join(not_above)} (95 % intervals of the difference)."
            )
        informed = row["scores"].get("informedness")
        if informed is not None and informed["low"] <= 0:
            found.append(f"{name} does not show that its findings depend on the image: informedness is not above 0.")
        found += collapses(results, name)
    scores = {name: results["systems"][name]["scores"] for name in judged(results)} | {BEST: best.get("scores", {})}
    spans = {name: own["CE-F1 macro-13+"] for name, own in scores.items() if "CE-F1 macro-13+" in own}
    # A sample of few cases has some conditions more often, and lacks others, which are left out of its mean.
    outside = [name for name, x in spans.items() if not x["low"] - 1e-9 <= x["value"] <= x["high"] + 1e-9]
    if outside:
        found.append(
            f"The interval of {', '.join(outside)} in CE-F1 macro-13+ does not contain the value: the conditions have "
            "so few cases that hardly any sample of the studies has them in the same proportions."
        )
    return found


def collapses(results: Mapping[str, Any], name: str) -> list[str]:
    """Sentences on a system that finds nothing, or nothing that is there, or writes fewer than 1 % distinct reports.

    Args:
        results: Return value of `mrg.metrics.evaluation.evaluate_systems`.
        name: Name of the system.
    """
    found, row, number = [], results["systems"][name], results["num_studies"]
    if not sum(condition["predicted"] for condition in row["per_condition"].values()):
        found.append(f"{name} finds nothing: none of its reports states one of the 13 conditions.")
    elif any(results["support"][c] for c in THIRTEEN) and not row["scores"]["CE-F1 micro-13+"]["value"]:
        found.append(f"{name} finds nothing that is there: none of the findings that it states is correct.")
    distinct = round(row["distinct"] * number)
    if distinct < 0.01 * number or distinct == 1 < number:
        share = ", fewer than 1 %" if distinct < 0.01 * number else ""
        found.append(f"{name} writes {distinct:,} of {number:,} distinct reports{share}.")
    return found


def against_best(results: Mapping[str, Any]) -> list[str]:
    """Lines for a comparison of systems: their differences from the best constant, and the remarks on them."""
    saved = results["best_constant"]
    if saved is None:
        lines = [
            f"The {BEST} report is not known: test the first run again, with the labeler and the margin used here; for",
            "files of reports, `python -m mrg.metrics FILE --train FILE` finds it on training reports.",
        ]
    else:
        lines = [
            f"{gap['a']} - {gap['b']}, {gap['score']}: "
            + "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * gap[key] for key in ("value", "low", "high")))
            for gap in saved["differences"]
            if gap["score"] in ("MCCS", "CE-F1 micro-13+")
        ]
    return [*lines, *legend(results), *wrapped(remarks(results))]


def wrapped(sentences: Sequence[str], width: int = 112) -> list[str]:
    """Lines of at most `width` characters; each sentence starts a line."""
    return [line for text in sentences for line in textwrap.wrap(text, width)]


def legend(results: Mapping[str, Any]) -> list[str]:
    """Lines on informedness and on the best constants of the scores in the table."""
    cases = f"at least {results['min_cases']} cases"
    if number := len(results["informative"]):
        noun = "condition" if number == 1 else "conditions"
        text = f"informedness: recall + specificity - 1, mean of the {number} {noun} with {cases}; 0 for any constant."
    else:
        text = f"informedness is undefined: no condition has {cases} in the references."
    return wrapped([text, *what_is_best(results)])


def what_is_best(results: Mapping[str, Any]) -> list[str]:
    """A sentence that says which the best constants are; none without them."""
    best = BestConstants.read(results["best_constant"])
    if best is None:
        return []
    part = f" (of {best.total:,}, evenly spaced)" if best.total > best.num_reports else ""
    shown = "; ".join(f"{c}: {best.describe(c)}" for c in ("MCCS", "CE-F1 micro-13+", "CE-F1 macro-13+"))
    return [
        f"{BEST}: for each score, the constant with the highest score on {best.num_reports:,} training reports{part}. "
        f"{shown}."
    ]
