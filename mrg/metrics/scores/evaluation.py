"""Several scores of several systems on the same references: intervals, paired differences, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mrg.errors import RunError, counted
from mrg.metrics.constants import BEST
from mrg.metrics.evaluation import format_span
from mrg.metrics.remarks import wrapped
from mrg.metrics.resampling import bootstrap, percentile_interval
from mrg.metrics.scores.group import Group, Row, Sums
from mrg.metrics.scores.kept import KeptValues, digest
from mrg.metrics.tables import columns

CE = ("micro-13+", "macro-13+", "micro-14", "macro-14", "micro-14+", "micro-5+", "example-14")
"""Conventions of CE-F1 in the table; the JSON has all of them."""


def labeled_rows(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of CE and MCCS from the return value of `mrg.metrics.evaluation.evaluate_systems`."""
    labels = f"labels by {result['labeler']}"
    shown = {"MCCS": f"mean over reports, margin {result['margin']:g}, {labels}"} if "mccs" in names else {}
    if "ce" in names:
        how = "average and conditions, 13 being those without No Finding; + counts uncertain as positive; 0/0 = 0"
        shown |= {f"CE-F1 {name}": f"{how}; {labels}" for name in CE}
        if result["informative"]:
            number = len(result["informative"])
            cases = f"at least {result['min_cases']} cases" if result["min_cases"] > 1 else "a case"
            which = f"the {counted(number, 'condition')} with {cases}"
            shown["informedness"] = f"recall + specificity - 1, mean of {which}, {labels}"
    best = result["best_constant"] or {"scores": {}, "differences": []}
    none = {"informedness": dict.fromkeys(("value", "low", "high"), 0.0)} if best["scores"] else {}  # of any constant
    rows = {}
    for name, convention in shown.items():
        gaps = [gap for gap in (*result["differences"], *best["differences"]) if gap["score"] == name]
        rows[name] = {"convention": convention, "percent": True, "higher_is_better": True}
        rows[name] |= {"num_studies": result["num_studies"]}
        rows[name] |= {"systems": {system: own["scores"][name] for system, own in result["systems"].items()}}
        rows[name] |= {"best_constant": (none | best["scores"]).get(name)}
        rows[name] |= {"differences": [{key: gap[key] for key in ("a", "b", "value", "low", "high")} for gap in gaps]}
    return rows


def group_rows(
    group: Group,
    systems: Mapping[str, Sequence[str]],
    target: Sequence[str],
    kept: KeptValues,
    train: Sequence[str] | None,
    num_resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Score systems by a group, the last of them against each other one and against the best constant.

    A study without a value for one of the systems is left out for all of them.

    Args:
        group: Scores.
        systems: Name -> N reports; the last one is the system, the others are baselines.
        target: N references.
        kept: File of the values.
        train: Training reports, for the best constants.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        Score -> `convention`, `percent`, `higher_is_better`, `num_studies`, `no_value` (system -> positions of the
        studies without a value), `systems` and `best_constant` (each `value`, `low` and `high`), and `differences`.

    Raises:
        RunError: If no study has a value for all systems.
    """
    values = {name: _values(group, name, preds, target, kept) for name, preds in systems.items()}
    complete = ~np.isnan(np.stack([own.sum(1) for own in values.values()])).any(0)
    lost = {name: np.isnan(own.sum(1)).nonzero()[0].tolist() for name, own in values.items()}
    if not complete.any():
        raise RunError(f"{group.name}: no study has a score for all of {', '.join(systems)}.")
    constants = group.best(train, target) if group.best is not None and train is not None else {}
    own_rows = {row.name: [row] for row in group.rows}
    sums = [Sums(own[complete], group.rows) for own in values.values()]
    sums += [Sums(own[complete], own_rows[name]) for name, own in constants.items()]
    drawn = bootstrap(sums, num_resamples, seed)
    corpus = [own.corpus() for own in sums]
    by_system = dict(zip(systems, zip(corpus[: len(systems)], drawn[: len(systems)], strict=True), strict=True))
    of_row = dict(zip(constants, zip(corpus[len(systems) :], drawn[len(systems) :], strict=True), strict=True))
    rows = {}
    for row in group.rows:
        sides = {name: (own[row.name], samples[row.name]) for name, (own, samples) in by_system.items()}
        best = of_row.get(row.name)
        if best is not None:
            sides[BEST] = best[0][row.name], best[1][row.name]
        rows[row.name] = _row(row, sides, list(systems)[-1])
        rows[row.name] |= {"num_studies": int(complete.sum()), "no_value": {k: v for k, v in lost.items() if v}}
    return rows


def _values(group: Group, system: str, preds: Sequence[str], target: Sequence[str], kept: KeptValues) -> np.ndarray:
    """(N, K) numbers of one system; equal pairs are scored once."""
    corpus = "" if group.block else digest(list(preds), list(target))
    keys = [
        digest(corpus, i if corpus and group.settings else 0, *pair)
        for i, pair in enumerate(zip(preds, target, strict=True))
    ]

    def compute(places: list[int]) -> Any:
        return group.values([preds[i] for i in places], [target[i] for i in places])

    return kept.fill(f"{group.name}, {system}", group.settings, keys, compute, group.block)


def _row(row: Row, sides: Mapping[str, tuple[float, np.ndarray]], system: str) -> dict[str, Any]:
    spans = {name: _interval(*side) for name, side in sides.items()}
    value, samples = sides[system]
    gaps = [
        {"a": system, "b": name} | _interval(value - other, samples - drawn)
        for name, (other, drawn) in sides.items()
        if name != system
    ]
    best = spans.pop(BEST, None)
    texts = {"convention": row.convention, "percent": row.percent, "higher_is_better": row.higher_is_better}
    return {**texts, "systems": spans, "best_constant": best, "differences": gaps}


def _interval(value: float, samples: np.ndarray) -> dict[str, float]:
    low, high = percentile_interval(samples)
    return {"value": value, "low": low, "high": high}


def format_scores(rows: Mapping[str, Mapping[str, Any]], num_studies: int) -> str:
    """The printed table, at most 112 columns wide for names of usual length.

    Args:
        rows: Score -> row, see `group_rows` and `labeled_rows`.
        num_studies: Number of studies.
    """
    systems = list(next(iter(rows.values()))["systems"])
    system, *baselines = systems[::-1]
    with_best = any(row["best_constant"] for row in rows.values())
    shown = [system, *baselines[::-1]]
    table = [["", *shown, *([BEST] if with_best else [])]]
    for name, row in rows.items():
        spans = [row["systems"][own] for own in shown] + ([row["best_constant"]] if with_best else [])
        scale = (100, 1) if row["percent"] else (1, 3)
        cells = ["-" if span is None else format_span(span, *scale).replace(", ", ",") for span in spans]
        table.append([f"{name}{'' if row['higher_is_better'] else ' (lower is better)'}", *cells])
    lines = columns(table)
    notes = [f"{num_studies:,} studies; 95 % bootstrap intervals over studies. In percent, except {_raw(rows)}."]
    if not _raw(rows):
        notes = [f"{num_studies:,} studies, in percent; 95 % bootstrap intervals over studies."]
    conventions: dict[str, list[str]] = {}
    for name, row in rows.items():
        conventions.setdefault(row["convention"], []).append(name)
    notes_below = [f"{', '.join(names)}: {text}." for text, names in conventions.items()]
    return "\n".join([*wrapped(notes), "", *lines, "", *wrapped([*notes_below, *_remarks(rows, system)])])


def _raw(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(name for name, row in rows.items() if not row["percent"])


def _remarks(rows: Mapping[str, Mapping[str, Any]], system: str) -> list[str]:
    """Sentences on the baselines that the system does not beat, and on studies without a score."""
    lost: dict[str, list[str]] = {}
    for name, row in rows.items():
        for gap in row["differences"]:
            beats = gap["low"] > 0 if row["higher_is_better"] else gap["high"] < 0
            if gap["a"] == system and not beats:
                lost.setdefault(gap["b"], []).append(name)
    found = [
        f"{system} does not beat {name} in {', '.join(scores)} (95 % intervals of the difference)."
        for name, scores in lost.items()
    ]
    for name, row in rows.items():
        if counts := {own: len(places) for own, places in row.get("no_value", {}).items()}:
            listed = ", ".join(f"{own} {count:,}" for own, count in counts.items())
            found.append(f"{name}: reports without a score: {listed}; {row['num_studies']:,} studies count.")
    return found
