"""Tables of CE and MCCS: every score with its convention and interval, next to baselines on the same references.

Intervals are percentile bootstrap intervals over studies; each report is labelled once (see `resampling.py`).
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.ce import average_score, condition_counts, confusion, report_scores
from mrg.metrics.conditions import CONDITIONS, CONVENTIONS, THIRTEEN, condition_indices, stated
from mrg.metrics.constants import BEST, BestConstants
from mrg.metrics.imports import name_of
from mrg.metrics.labels import Labeler, Scorer, label_distinct, require_reports
from mrg.metrics.packed import distinct, pick
from mrg.metrics.remarks import BASELINES, legend, remarks, wrapped
from mrg.metrics.resampling import MIN_CASES, ReportSums, bootstrap, percentile_interval, ranks
from mrg.metrics.tables import columns, condition_scores, format_ce, percent

CONSTANT_NORMAL = (
    "The heart is normal in size. The mediastinum is normal. The lungs are clear. No focal consolidation, pneumonia, "
    "edema, pleural effusion, or pneumothorax."
)
"""The constant normal report, a baseline: the same normal findings for every image."""

COLUMNS = ("MCCS", "CE-F1 micro-13+", "CE-F1 macro-13+", "informedness", "CE-F1 micro-14")
"""Scores in tables; the last one only on pages, which are wider."""
NO_FINDING = "No reference contains a finding, so CE-F1 over 13 or 5 conditions is 0 for any report. Use other studies."


def most_frequent_report(reports: Sequence[str]) -> str:
    """The most frequent report; ties go to the first in alphabetical order, so that the order of a file has no effect.

    Raises:
        UserError: If there is no report.
    """
    if not reports:
        raise UserError("Expected argument `reports` to hold at least one report, but got none.")
    (new,), (rows,) = distinct(reports)
    counts = np.bincount(rows)
    return min(pick(reports, new[counts == counts.max()]))


def remark_on_frequency(reports: Sequence[str], row: str, what: str) -> str:
    """Note that no report occurs more than once, so that the most frequent one is arbitrary; empty otherwise.

    Args:
        reports: Reports from which `most_frequent_report` chose.
        row: Name of the baseline's row in the table.
        what: Name of the reports: "reference".
    """
    if len(reports) < 2 or len(distinct(reports)[0][0]) < len(reports):
        return ""
    return f"No {what} occurs more than once: the row {row!r} is the first in alphabetical order, an arbitrary choice."


def evaluate_systems(
    systems: Mapping[str, Sequence[str]],
    target: Sequence[str],
    labeler: Labeler,
    margin: float = 0.5,
    formats: Mapping[str, float] | None = None,
    differences: Sequence[tuple[str, str]] = (),
    num_resamples: int = 1000,
    seed: int = 0,
    scorers: Mapping[str, Scorer] | None = None,
    best: BestConstants | None = None,
    min_cases: int = MIN_CASES,
    rank_by: str | None = None,
) -> dict[str, Any]:
    """Score several systems on the same references, in one call of the labeler.

    Args:
        systems: Name -> N reports.
        target: N reference reports.
        labeler: Labeler, or any callable of its form.
        margin: Margin of MCCS.
        formats: Name -> share of completions in the valid format, for systems that have a format.
        differences: Pairs (a, b) of names: a minus b, paired by study.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        scorers: Name -> further score per report, whose mean gets a column.
        best: Best constants on the training reports, found with the same labeler and margin.
        min_cases: Fewest references with a condition that counts in informedness.
        rank_by: Score to rank the systems by, see `mrg.metrics.resampling.ranks`.

    Returns:
        Settings, support, `systems`, `differences`, `best_constant` and, with `rank_by`, `ranking`; JSON-serializable.

    Raises:
        UserError: If a system does not have N reports, N is 0, or `best` is that of another margin.
    """
    _check(systems, target, margin, best)
    table, (of_target, *of_systems) = label_distinct(labeler, target, *systems.values())
    reference, of, how = table[of_target], dict(zip(systems, of_systems, strict=True)), (margin, scorers, min_cases)
    sums = {name: ReportSums.of(own, table[of[name]], target, reference, *how) for name, own in systems.items()}
    rows = list(dict.fromkeys(map(tuple, best.rows.values()))) if best else []
    constant = [ReportSums(reference.new_tensor(row).expand_as(reference), reference, margin) for row in rows]
    drawn = bootstrap([*sums.values(), *constant], num_resamples, seed)
    corpus = {name: own.corpus() for name, own in sums.items()}
    samples = dict(zip(systems, drawn[: len(sums)], strict=True))
    of_row = dict(zip(rows, zip(constant, drawn[len(sums) :], strict=True), strict=True))
    return {
        "num_studies": len(target),
        "labeler": name_of(labeler),
        "margin": margin,
        **_settings(reference, min_cases),
        "systems": {
            name: {"scores": _intervals(corpus[name], samples[name]), "format": (formats or {}).get(name)}
            | {"distinct": len(of[name].unique()) / len(target), **_shares(table[of[name]], reference)}
            for name in systems
        },
        "differences": _differences(corpus, samples, differences),
        "best_constant": None if best is None else dataclasses.asdict(best) | _constants(best, of_row, corpus, samples),
        **({} if rank_by is None else {"ranking": {"by": rank_by, "systems": ranks(corpus, samples, rank_by)}}),
    }


def _check(
    systems: Mapping[str, Sequence[str]], target: Sequence[str], margin: float, best: BestConstants | None
) -> None:
    require_reports(target)
    if best is not None and best.margin != margin:
        raise UserError(f"Expected argument `best` to have the MCCS margin {margin:g}, but got {best.margin:g}.")
    for name, preds in systems.items():
        if len(preds) != len(target):
            raise UserError(f"Expected system {name!r} to have {len(target)} reports, but got {len(preds)}.")


def _settings(reference: Tensor, min_cases: int) -> dict[str, Any]:
    """The conventions, the findings of the references, and the conditions that count in informedness."""
    support = dict(zip(CONDITIONS, stated(reference).sum(0).tolist(), strict=True))
    return {
        "conventions": {name: {**s, "conditions": list(s["conditions"])} for name, s in CONVENTIONS.items()},
        "empty_references": float((reference[:, :13] == 0).all(1).double().mean()),
        "support": support,
        "min_cases": min_cases,
        "informative": [name for name in THIRTEEN if max(1, min_cases) <= support[name] < len(reference)],
    }


def _constants(
    best: BestConstants,
    of_row: Mapping[tuple[int, ...], tuple[ReportSums, Mapping[str, np.ndarray]]],
    corpus: Mapping[str, Mapping[str, float]],
    samples: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    """Score each best constant by its own score, and subtract it from the systems that are not baselines."""
    scores = {}
    gaps: list[dict[str, Any]] = []
    for score, row in best.rows.items():
        sums, drawn = of_row[tuple(row)]
        value = sums.corpus()[score]
        scores[score] = _interval(value, drawn[score])
        gaps += [
            {"a": name, "b": BEST, "score": score}
            | _interval(corpus[name][score] - value, samples[name][score] - drawn[score])
            for name in corpus
            if name not in BASELINES
        ]
    return {"scores": scores, "differences": gaps}


def _differences(
    corpus: Mapping[str, Mapping[str, float]],
    samples: Mapping[str, Mapping[str, np.ndarray]],
    pairs: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
    return [
        {"a": a, "b": b, "score": score} | _interval(value - corpus[b][score], samples[a][score] - samples[b][score])
        for a, b in pairs
        for score, value in corpus[a].items()
    ]


def _intervals(values: Mapping[str, float], samples: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {score: _interval(value, samples[score]) for score, value in values.items()}


def _interval(value: float, samples: np.ndarray) -> dict[str, float]:
    low, high = percentile_interval(samples)
    return {"value": value, "low": low, "high": high}


def _shares(preds: Tensor, target: Tensor) -> dict[str, Any]:
    """Precision and recall in every convention, and the scores of each of the 13 conditions with 0/0 = 0."""
    table = confusion(preds, target)
    rows = condition_scores(table)

    def shares(score: str) -> dict[str, float]:
        return {name: _share(preds, target, table, score, **setting) for name, setting in CONVENTIONS.items()}

    return {
        "precision": shares("precision"),
        "recall": shares("recall"),
        "per_condition": {
            c: {k: v if v == v else None if k == "informedness" else 0.0 for k, v in rows[c].items()} for c in THIRTEEN
        },
    }


def _share(
    preds: Tensor, target: Tensor, table: Tensor, score: str, average: str, conditions: Any, uncertain: str
) -> float:
    """`ce_f1` of labels whose `confusion` is known, which is most of the work on many reports."""
    if average == "example":
        return float(report_scores(preds, target, condition_indices(conditions), uncertain, score, 0).mean())
    counts = condition_counts(table, uncertain)[:, condition_indices(conditions)]
    return float(average_score(counts, average, score, 0))


def format_conventions(results: Mapping[str, Any], system: str) -> str:
    """CE of one system from `evaluate_systems` in every convention and for each condition, in percent."""
    row, others = results["systems"][system], [name for name in results["systems"] if name != system]
    best = results["best_constant"]
    rows = {
        name: [
            percent(row["precision"][name]),
            percent(row["recall"][name]),
            format_span(row["scores"][f"CE-F1 {name}"]),
            *(percent(results["systems"][other]["scores"][f"CE-F1 {name}"]["value"]) for other in others),
            *([percent(best["scores"][f"CE-F1 {name}"]["value"])] if best else []),
        ]
        for name in CONVENTIONS
    }
    head = ["precision", "recall", "F1 [95 % interval]", *others, *([BEST] if best else [])]
    lines = [f"CE of {system} in every convention, in percent, followed by the F1 of the other rows."]
    return "\n".join([*lines, *format_ce(head, rows, row["per_condition"])])


def format_span(score: Mapping[str, float], scale: float = 100, digits: int = 1, sign: str = "") -> str:
    """A score with its interval, `value [low, high]`, in percent by default."""
    value, low, high = (f"{scale * score[key]:{sign}.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def is_share(score: str) -> bool:
    """Whether a score of `evaluate_systems` is a fraction, shown in percent; the range of other scorers is unknown."""
    return score in ("MCCS", "informedness") or score.startswith("CE-F1 ")


def format_table(results: Mapping[str, Any]) -> str:
    """The printed table of `evaluate_systems`, in percent and at most 112 columns wide."""
    systems, support = results["systems"], results["support"]
    lines = [
        f"{results['num_studies']} studies, labeler {results['labeler']}, MCCS margin {results['margin']:g}; "
        "95 % bootstrap intervals over studies.",
        "In percent. CE-F1 over 13 conditions (without No Finding); +: uncertain counts as positive; 0/0 = 0.",
        *textwrap.wrap(
            f"Support (positive or uncertain), {sum(support[c] for c in THIRTEEN)} findings: "
            + ", ".join(f"{c} {support[c]}" for c in CONDITIONS)
            + f". References that mention none of the 13 conditions: {percent(results['empty_references'])} %.",
            width=112,
        ),
        *([] if any(support[c] for c in THIRTEEN) else [NO_FINDING]),
        "",
    ]
    extras = [score for score in next(iter(systems.values()))["scores"] if not is_share(score)]
    shown = (*COLUMNS[:4], *extras)
    table = [["", *(c.removeprefix("CE-F1 ") for c in shown), "distinct", "format"]]
    for name, row in systems.items():
        rate = "-" if row["format"] is None else f"{100 * row['format']:.0f} %"
        table.append([name, *_spans(row["scores"], shown), f"{100 * row['distinct']:.0f} %", rate])
    if best := results["best_constant"]:
        place = 1 + max((place for place, name in enumerate(systems, 1) if name in BASELINES), default=0)
        scores = best["scores"]
        if results["informative"]:
            scores = scores | {"informedness": dict.fromkeys(("value", "low", "high"), 0.0)}
        table.insert(place, [BEST, *_spans(scores, shown), "-", "-"])
    rows = columns(table)
    lines += rows if len(rows[0]) <= 112 else columns(table, gap=1)
    for gap in [*results["differences"], *(best or {}).get("differences", [])]:
        if gap["score"] in COLUMNS[:2]:
            lines.append(f"{gap['a']} - {gap['b']}, {gap['score']}: {format_span(gap, sign='+')}")
    return "\n".join([*lines, *legend(results), *wrapped(remarks(results))])


def _spans(scores: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    """Cells of a row, without blanks in the intervals to fit into the width; "-" for a score that is not defined."""
    spans = [format_span(scores[c], *((100, 1) if is_share(c) else (1, 3))) if c in scores else "-" for c in shown]
    return [span.replace(", ", ",") for span in spans]


def format_nlg(scores: Mapping[str, Any]) -> str:
    """The printed NLG scores of all systems: percent, and CIDEr from 0 to 10."""
    systems = {name: row for name, row in scores.items() if name != "normalization"}
    names = list(next(iter(systems.values())))
    table = [["", *names]]
    for system, row in systems.items():
        table.append([system, *(f"{row[name]:.3f}" if name == "CIDEr" else percent(row[name]) for name in names)])
    lines = [
        f"NLG with normalization {scores['normalization']}, in percent (CIDEr: 0 to 10): similarity of wording, not of "
        "findings; not clinical evidence.",
    ]
    return "\n".join([*lines, *columns(table)])
