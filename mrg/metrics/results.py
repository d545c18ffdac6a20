"""A table one can trust: every score with its convention, its interval, and what saying nothing would earn.

Intervals are percentile bootstrap intervals over studies (Efron and Tibshirani, 1993) by `scipy.stats.bootstrap`, which
resamples indices into per-study counts, so that reports are labelled once.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrg.metrics.ce import CONVENTIONS, cell_counts
from mrg.metrics.conditions import CONDITIONS, THIRTEEN
from mrg.metrics.mccs import mccs

CONSTANT_NORMAL = (
    "The heart is normal in size. The mediastinum is normal. The lungs are clear. No focal consolidation, pneumonia, "
    "edema, pleural effusion, or pneumothorax."
)
"""Says that all is normal, whatever the image shows."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Indices (..., N) of resampled studies -> scores (...)."""


def most_frequent_report(reports: Sequence[str]) -> str:
    """The training split's commonest report; the first one among equals."""
    if not reports:
        raise ValueError("Expected argument `reports` to hold at least one report, but got none.")
    return Counter(reports).most_common(1)[0][0]


def mccs_statistic(preds: Tensor, target: Tensor, margin: float, written: Sequence[bool]) -> Statistic:
    """Mean MCCS of the studies at the given indices; 0 where nothing was written."""
    scores = mccs(preds, target, margin, reduction="none").cpu().numpy() * np.asarray(written)
    return lambda index: scores[index].mean(-1)


def ce_statistic(preds: Tensor, target: Tensor, convention: str) -> Statistic:
    """CE-F1 in a named convention of the studies at the given indices."""
    setting = CONVENTIONS[convention]
    counts = cell_counts(preds, target, setting["conditions"], setting["uncertain"])
    tp, fp, fn = (c.cpu().numpy().astype(np.float64) for c in counts)
    if setting["average"] == "example":
        scores = _f1(tp.sum(1), fp.sum(1), fn.sum(1))
        return lambda index: scores[index].mean(-1)
    if setting["average"] == "micro":
        totals = [c.sum(1) for c in (tp, fp, fn)]
        return lambda index: _f1(*(c[index].sum(-1) for c in totals))
    return lambda index: _f1(*(c[index].sum(-2) for c in (tp, fp, fn))).mean(-1)


def _f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    return np.asarray(2 * tp / np.maximum(2 * tp + fp + fn, 1))


def _difference(a: Statistic, b: Statistic) -> Statistic:
    return lambda index: a(index) - b(index)


def interval(statistic: Statistic, num_studies: int, num_resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """The score and its 95 % interval: `{"value", "low", "high"}`."""
    from scipy.stats import bootstrap

    index = np.arange(num_studies)
    value = float(statistic(index))
    if num_studies < 2:
        return {"value": value, "low": value, "high": value}
    result = bootstrap(
        (index,),
        lambda sample, axis=-1: statistic(np.moveaxis(sample, axis, -1)),
        n_resamples=num_resamples,
        batch=100,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return {
        "value": value,
        "low": float(result.confidence_interval.low),
        "high": float(result.confidence_interval.high),
    }


def evaluate_systems(
    systems: Mapping[str, Sequence[str]],
    target: Sequence[str],
    labeler: Any,
    margin: float = 0.5,
    formats: Mapping[str, float] | None = None,
    differences: Sequence[tuple[str, str]] = (),
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score several systems on the same references.

    Args:
        systems: Name to reports, each as long as `target`.
        target: Reference reports.
        labeler: See `mrg.metrics.labels.Labeler`.
        margin: Of MCCS.
        formats: Name to share of well-formed completions, where a system has a format.
        differences: Pairs (a, b) of names: a minus b, paired by study.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        A dict that json can write.
    """
    reference = labeler(list(target))
    scores: dict[str, dict[str, Statistic]] = {}
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
    for name, preds in systems.items():
        if len(preds) != len(target):
            raise ValueError(f"Expected system {name!r} to have {len(target)} reports, but got {len(preds)}.")
        labels = labeler(list(preds))
        scores[name] = {"MCCS": mccs_statistic(labels, reference, margin, [bool(text.strip()) for text in preds])}
        scores[name].update({f"CE-F1 {c}": ce_statistic(labels, reference, c) for c in CONVENTIONS})
        counts = cell_counts(labels, reference, THIRTEEN, "positive")
        tp, fp, fn = (c.sum(0).tolist() for c in counts)
        result["systems"][name] = {
            "scores": {s: interval(f, len(target), num_resamples, seed) for s, f in scores[name].items()},
            "distinct": len(set(preds)) / len(preds),
            "format": (formats or {}).get(name),
            "per_condition": {
                c: {"precision": tp[i] / max(1, tp[i] + fp[i]), "recall": tp[i] / max(1, tp[i] + fn[i]),
                    "f1": 2 * tp[i] / max(1, 2 * tp[i] + fp[i] + fn[i]), "support": tp[i] + fn[i]}
                for i, c in enumerate(THIRTEEN)
            },
        }  # fmt: skip
    for a, b in differences:
        for score in scores[a]:
            gap = interval(_difference(scores[a][score], scores[b][score]), len(target), num_resamples, seed)
            result["differences"].append({"a": a, "b": b, "score": score, **gap})
    return result


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
        "",
    ]
    width = max(12, *map(len, systems))
    head = [c.removeprefix("CE-F1 ") for c in COLUMNS]
    lines.append(" " * width + "".join(f"{h:>19}" for h in head) + f"{'distinct':>9}{'format':>7}")
    for name, row in systems.items():
        cells = "".join(
            f"{100 * s['value']:.1f} [{100 * s['low']:.1f},{100 * s['high']:.1f}]".rjust(19)
            for s in (row["scores"][c] for c in COLUMNS)
        )
        rate = "-" if row["format"] is None else f"{100 * row['format']:.0f} %"
        lines.append(f"{name:<{width}}{cells}{100 * row['distinct']:>7.0f} %{rate:>7}")
    for gap in results["differences"]:
        if gap["score"] in COLUMNS[:2]:
            lines.append(
                f"{gap['a']} - {gap['b']}, {gap['score']}: {100 * gap['value']:+.1f} "
                f"[{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
            )
    return "\n".join(lines)
