"""A table one can trust: every score with its convention, its interval, and what saying nothing would earn.

Intervals are percentile bootstrap intervals over studies; reports are labelled once (see `resampling.py`).
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrg.metrics.ce import average_score, ce_f1, condition_counts, confusion
from mrg.metrics.conditions import CONDITIONS, THIRTEEN
from mrg.metrics.conventions import CONVENTIONS, FAMILIES, SCORES
from mrg.metrics.labels import Labeler, Scorer, require_reports, written
from mrg.metrics.resampling import ReportSums, bootstrap, percentile_interval

CONSTANT_NORMAL = (
    "The heart is normal in size. The mediastinum is normal. The lungs are clear. No focal consolidation, pneumonia, "
    "edema, pleural effusion, or pneumothorax."
)
"""Says that all is normal, whatever the image shows."""


def most_frequent_report(reports: Sequence[str]) -> str:
    """The commonest report; among equals the first one of the alphabet, so that the order of a file decides nothing."""
    if not reports:
        raise ValueError("Expected argument `reports` to hold at least one report, but got none.")
    counts = Counter(reports)
    most = max(counts.values())
    return min(report for report, count in counts.items() if count == most)


def remark_on_frequency(reports: Sequence[str], row: str, what: str) -> str:
    """A line where the most frequent report is none: no report occurs twice; empty otherwise.

    Args:
        reports: Of which `most_frequent_report` took one.
        row: What the table calls it.
        what: What the reports are called: "reference".
    """
    if len(reports) < 2 or len(set(reports)) < len(reports):
        return ""
    return f"No {what} occurs twice: the row {row!r} is the first one of the alphabet and says little."


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
    rank_by: str | None = None,
) -> dict[str, Any]:
    """Score several systems on the same references.

    Args:
        systems: Name to reports, each as long as `target`.
        target: Reference reports.
        labeler: See `mrg.metrics.labelers.base.Labeler`.
        margin: Of MCCS.
        formats: Name to share of well-formed completions, where a system has a format.
        differences: Pairs (a, b) of names: a minus b, paired by study.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.
        scorers: Name to a further score per report, whose mean gets a column of its own.
        rank_by: Score to rank the systems by; adds `ranking`, see `ranks`.

    Returns:
        A dict that json can write.

    Raises:
        ValueError: If a system has not as many reports as there are references, or there is none.
    """
    reference = labeler(list(target))
    require_reports(reference)
    result: dict[str, Any] = {
        "num_studies": len(target),
        "labeler": getattr(labeler, "name", type(labeler).__name__),
        "margin": margin,
        "conventions": {name: {**s, "conditions": list(s["conditions"])} for name, s in CONVENTIONS.items()},
        "empty_references": float((reference[:, :13] == 0).all(1).double().mean()),
        "support": dict(zip(CONDITIONS, torch.isin(reference, torch.tensor([1, 3])).sum(0).tolist(), strict=True)),
        "systems": {},
        "differences": [],
    }
    sums = {}
    for name, preds in systems.items():
        if len(preds) != len(target):
            raise ValueError(f"Expected system {name!r} to have {len(target)} reports, but got {len(preds)}.")
        labels = labeler(list(preds))
        extras = {
            score: torch.as_tensor(scorer(list(preds), list(target))) for score, scorer in (scorers or {}).items()
        }
        sums[name] = ReportSums(labels, reference, margin, written(list(preds)), extras)
        result["systems"][name] = {
            "scores": {},
            "distinct": len(set(preds)) / len(preds),
            "format": (formats or {}).get(name),
            "precision": {c: float(ce_f1(labels, reference, **v, score="precision")) for c, v in CONVENTIONS.items()},
            "recall": {c: float(ce_f1(labels, reference, **v, score="recall")) for c, v in CONVENTIONS.items()},
            "per_condition": _per_condition(labels, reference),
        }
    drawn = dict(zip(systems, bootstrap(list(sums.values()), num_resamples, seed), strict=True))
    for name, row in result["systems"].items():
        row["scores"] = {s: _interval(value, drawn[name][s]) for s, value in sums[name].corpus().items()}
    if rank_by is not None:
        result["ranking"] = {"by": rank_by, "systems": ranks(result["systems"], drawn, rank_by)}
    for a, b in differences:
        values = sums[a].corpus(), sums[b].corpus()
        for score in values[0]:
            gap = _interval(values[0][score] - values[1][score], drawn[a][score] - drawn[b][score])
            result["differences"].append({"a": a, "b": b, "score": score, **gap})
    return result


def ranks(
    systems: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Mapping[str, np.ndarray]], by: str
) -> dict[str, dict[str, float]]:
    """Rank of each system by one score, and how stable it is under the bootstrap.

    Args:
        systems: Name to a row with `scores`.
        drawn: Name to its scores in each bootstrap sample, the same samples for all systems.
        by: The score.

    Returns:
        Name to `rank` (1 is best; equal scores share the better rank), `low` and `high`, the 95 % interval of the rank
        over the samples, and `first`, the share of samples in which no other system is better; best first.
    """
    values = np.array([row["scores"][by]["value"] for row in systems.values()])
    samples = np.stack([drawn[name][by] for name in systems])
    rank = 1 + (values[None, :] > values[:, None] + 1e-12).sum(1)
    sampled = 1 + (samples[None, :] > samples[:, None] + 1e-12).sum(1)
    low, high = np.quantile(sampled, (0.025, 0.975), axis=1, method="nearest")
    rows = {
        name: {"rank": int(rank[i]), "low": int(low[i]), "high": int(high[i]), "first": float((sampled[i] == 1).mean())}
        for i, name in enumerate(systems)
    }
    return dict(sorted(rows.items(), key=lambda row: row[1]["rank"]))


def _interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = percentile_interval(drawn)
    return {"value": value, "low": low, "high": high}


def _per_condition(preds: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    """Scores of each of the 13 conditions, uncertain counted as positive."""
    counts = condition_counts(confusion(preds, target), "positive")
    values = {score: average_score(counts, "none", score, 0).tolist() for score in SCORES}
    support, predicted = (counts[0] + counts[2]).tolist(), (counts[0] + counts[1]).tolist()
    return {
        c: {**{score: values[score][i] for score in SCORES}, "support": support[i], "predicted": predicted[i]}
        for i, c in enumerate(THIRTEEN)
    }


NO_FINDING = (
    "No reference states a finding: CE-F1 over 13 or 5 conditions is 0 whatever is written. Take other studies."
)
COLUMNS = ("MCCS", "CE-F1 micro-13+", "CE-F1 macro-13+", "CE-F1 micro-14")


def format_table(results: Mapping[str, Any]) -> str:
    """The printed form, in percent points: at most 112 columns; the JSON holds every convention."""
    systems, support = results["systems"], results["support"]
    lines = [
        f"{results['num_studies']} studies, labeler {results['labeler']}, MCCS margin {results['margin']:g}; "
        "95 % bootstrap intervals over studies.",
        "CE-F1 14/13/5: conditions (13 leaves out No Finding); +: uncertain counts as positive; 0/0 is 0.",
        *textwrap.wrap(
            f"Support (positive or uncertain), {sum(support[c] for c in THIRTEEN)} findings: "
            + ", ".join(f"{c} {support[c]}" for c in CONDITIONS)
            + f". References that state nothing on the 13: {100 * results['empty_references']:.1f} %.",
            width=112,
        ),
        *([] if any(support[c] for c in THIRTEEN) else [NO_FINDING]),
        "",
    ]
    width = max(12, *map(len, systems)) + 1
    extras = [c for c in next(iter(systems.values()))["scores"] if c != "MCCS" and not c.startswith("CE-F1 ")]
    columns = [*COLUMNS, *extras]
    head = [c.removeprefix("CE-F1 ") for c in columns]
    cells = [[_cell(row["scores"][c], c in extras) for c in columns] for row in systems.values()]
    widths = [max(18, *(len(row[i]) + 1 for row in cells), len(h) + 1) for i, h in enumerate(head)]
    lines.append(" " * width + "".join(f"{h:>{w}}" for h, w in zip(head, widths, strict=True)) + " distinct format")
    for (name, row), texts in zip(systems.items(), cells, strict=True):
        rate = "-" if row["format"] is None else f"{100 * row['format']:.0f} %"
        line = "".join(f"{text:>{w}}" for text, w in zip(texts, widths, strict=True))
        lines.append(f"{name:<{width}}{line}{100 * row['distinct']:>7.0f} %{rate:>7}")
    for gap in results["differences"]:
        if gap["score"] in COLUMNS[:2]:
            lines.append(
                f"{gap['a']} - {gap['b']}, {gap['score']}: {100 * gap['value']:+.1f} "
                f"[{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
            )
    return "\n".join(lines)


def _cell(score: Mapping[str, float], is_extra: bool) -> str:
    """Ours are shares, shown in percent; what range a scorer of the user's has is not known."""
    by, digits = (1, 3) if is_extra else (100, 1)
    value, low, high = (f"{by * score[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low},{high}]"


def format_conventions(results: Mapping[str, Any], system: str) -> str:
    """CE in every convention and for each condition, for one of the systems, in percent points."""
    row, others = results["systems"][system], [name for name in results["systems"] if name != system]
    width = max([12, *(len(name) + 2 for name in others)])
    lines = [
        f"CE of {system} in every convention, in percent, and the F1 of the other rows.",
        f"{'convention':<12}{'precision':>10}{'recall':>8}{'F1 [95 % interval]':>21}"
        + "".join(f"{name:>{width}}" for name in others)
        + "  reported by",
    ]
    for name in CONVENTIONS:
        score = row["scores"][f"CE-F1 {name}"]
        span = f"{100 * score['value']:.1f} [{100 * score['low']:.1f},{100 * score['high']:.1f}]"
        rest = (results["systems"][other]["scores"][f"CE-F1 {name}"]["value"] for other in others)
        users = ", ".join(family for family, members in FAMILIES.items() if name in members)
        lines.append(
            f"{name:<12}{100 * row['precision'][name]:>10.1f}{100 * row['recall'][name]:>8.1f}{span:>21}"
            + "".join(f"{100 * value:>{width}.1f}" for value in rest)
            + f"  {users}".rstrip()
        )
    lines += ["", f"{'condition (+)':<28}{'precision':>10}{'recall':>8}{'F1':>7}{'support':>9}{'predicted':>11}"]
    for name, values in row["per_condition"].items():
        support, predicted = values["support"], values["predicted"]
        precision, recall, f1 = (
            f"{100 * values[score]:.1f}" if denominator else "-"
            for score, denominator in (("precision", predicted), ("recall", support), ("f1", support + predicted))
        )
        lines.append(f"{name:<28}{precision:>10}{recall:>8}{f1:>7}{support:>9,}{predicted:>11,}")
    return "\n".join(lines)


def format_nlg(scores: Mapping[str, Any]) -> str:
    """NLG scores of all systems, as fractions."""
    systems = {name: row for name, row in scores.items() if name != "normalization"}
    width = max(map(len, systems))
    names = list(next(iter(systems.values())))
    lines = [
        f"NLG, normalization {scores['normalization']}: likeness of wording, not findings; no clinical evidence.",
        " " * width + "".join(f"{name:>9}" for name in names),
    ]
    for system, row in systems.items():
        lines.append(f"{system:<{width}}" + "".join(f"{row[name]:>9.4f}" for name in names))
    return "\n".join(lines)
