"""What the samples of a policy say about its findings: calibration, thresholds, risk, and the choices of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mrg.metrics.calibration import (
    Calibration,
    brier,
    calibration_error,
    choose_threshold,
    cross_fitted,
    precision_recall,
    reliability,
    risk_coverage,
)
from mrg.metrics.ce import ce_f1
from mrg.metrics.conditions import NUM_CONDITIONS, THIRTEEN, stated
from mrg.metrics.labels import Labeler, has_text, label_together
from mrg.metrics.mccs import mccs
from mrg.metrics.resampling import ReportSums, bootstrap, percentile_interval
from mrg.metrics.tables import columns, percent

COMPARED = ("MCCS", "CE-F1 micro-13+", "CE-F1 macro-13+", "CE-F1 example-13+")
SHOWN = (*COMPARED[:3], "precision", "recall")
DISAGREE = 0.25
"""Samples disagree about a finding if at least this share states it and at least this share does not."""


def disagreements(shares: Mapping[str, float]) -> list[int]:
    """Positions in `THIRTEEN` of the findings about which the samples disagree, see `DISAGREE`."""
    return [i for i, name in enumerate(THIRTEEN) if DISAGREE <= shares[name] <= 1 - DISAGREE]


def as_digits(labels: Tensor, written: Tensor) -> list[str]:
    """Label classes (N, 14) as strings of digits, empty for samples without a report."""
    rows = zip(labels.tolist(), written.tolist(), strict=True)
    return ["".join(map(str, row)) if has_report else "" for row, has_report in rows]


def from_digits(rows: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Label classes (N, 14) and (N,) bool, False without a report, from what `as_digits` returns."""
    labels = torch.tensor([list(map(int, row or "0" * NUM_CONDITIONS)) for row in rows])
    return labels.view(-1, NUM_CONDITIONS), torch.tensor([bool(row) for row in rows])


def compare_choices(
    notes: Sequence[Mapping[str, Any]], reference: Tensor, margin: float, num_resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Score every choice among the same samples, and the greedy reports, on M studies.

    Args:
        notes: M records with `choices`, `sample_labels` and `greedy_labels`, see `mrg.modules.consensus`.
        reference: (M, 14) label classes of the references.
        margin: Margin of MCCS.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        System -> score -> `value`, and the paired `difference` to greedy with its 95 % interval `low` and `high`; also
        `precision` and `recall` (micro-13+), each with its `value` only.
    """
    chosen = {"greedy": [note["greedy_labels"] for note in notes]}
    for name in notes[0]["choices"]:
        if all(name in note["choices"] for note in notes):  # reports of a resumed test may lack operating points
            chosen[name] = [note["sample_labels"][note["choices"][name]] for note in notes]
    sums, shares = [], []
    for digits in chosen.values():
        labels, written = from_digits(digits)
        sums.append(ReportSums(labels, reference, margin, written))
        shares.append({key: {"value": float(ce_f1(labels, reference, score=key))} for key in ("precision", "recall")})
    drawn = bootstrap(sums, num_resamples, seed)
    base = sums[0].corpus()
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, own, samples, share in zip(chosen, sums, drawn, shares, strict=True):
        corpus, result[name] = own.corpus(), {}
        for score in COMPARED:
            low, high = percentile_interval(samples[score] - drawn[0][score])
            gap = corpus[score] - base[score]
            result[name][score] = {"value": corpus[score], "difference": gap, "low": low, "high": high}
        result[name] |= share
    return result


def count_table(shares: Tensor, found: Tensor, num_samples: int) -> dict[str, list[list[int]]]:
    """Condition -> for k = 0 to N, the studies in which k samples state it, and how many of these have the finding.

    Thresholds and calibrations depend on this table alone.

    Args:
        shares: (M, 13) shares of samples.
        found: (M, 13) bool.
        num_samples: N.
    """
    counts = (shares * num_samples).round().long()
    table = {}
    for i, name in enumerate(THIRTEEN):
        own = [counts[:, i] == k for k in range(num_samples + 1)]
        table[name] = [[int(rows.sum()), int((rows & found[:, i]).sum())] for rows in own]
    return table


def thresholds_of(table: Mapping[str, Sequence[Sequence[int]]], operating_point: str) -> Tensor:
    """Thresholds (13,) on the shares of samples for an operating point, from a `count_table`."""
    thresholds = []
    for name in THIRTEEN:
        rows = table[name]
        shares = torch.arange(len(rows), dtype=torch.float64) / (len(rows) - 1)
        sizes = torch.tensor([[hits, total - hits] for total, hits in rows]).flatten()
        found = torch.tensor([True, False]).repeat(len(rows)).repeat_interleave(sizes)
        thresholds.append(
            choose_threshold(shares.repeat_interleave(2).repeat_interleave(sizes), found, operating_point)
        )
    return torch.tensor(thresholds, dtype=torch.float64)


def calibration_scores(shares: Tensor, found: Tensor, calibrated: Tensor | None) -> dict[str, Any]:
    """Calibration of the shares of samples and of calibrated probabilities.

    Args:
        shares: (M, 13) shares of samples.
        found: (M, 13) bool, findings of the references.
        calibrated: (M, 13) calibrated probabilities.

    Returns:
        `shares` and `calibrated`, each with `ece` and `brier` over all findings, `mean_ece` over conditions,
        `reliability`, and `conditions`: condition -> `frequency`, `probability` (means), `ece` and `brier`.
    """
    sides = {"shares": shares} if calibrated is None else {"shares": shares, "calibrated": calibrated}
    scores: dict[str, Any] = {}
    for side, values in sides.items():
        conditions = {}
        for i, name in enumerate(THIRTEEN):
            own = values[:, i], found[:, i]
            conditions[name] = {"frequency": float(own[1].double().mean()), "probability": float(own[0].mean())}
            conditions[name] |= {"ece": calibration_error(*own), "brier": brier(*own)}
        scores[side] = {"ece": calibration_error(values, found), "brier": brier(values, found)}
        scores[side]["mean_ece"] = sum(row["ece"] for row in conditions.values()) / len(conditions)
        scores[side] |= {"reliability": reliability(values, found), "conditions": conditions}
    return scores


def validated_scores(shares: Tensor, found: Tensor, num_samples: int, method: str) -> dict[str, Any]:
    """`calibration_scores` on the split that calibrates: each study by a calibration that was fitted without it."""
    calibrated = None if method == "none" else cross_fitted(shares, found, num_samples, method)
    return calibration_scores(shares, found, calibrated)


def uncertainty(
    rows: Sequence[Mapping[str, Any]], labeler: Labeler, margin: float, calibration: Calibration | None
) -> dict[str, Any]:
    """The uncertainty of tested studies.

    Args:
        rows: M records with `prediction`, `greedy`, `target`, `shares` and `agreement`.
        labeler: Labeler.
        margin: Margin of MCCS.
        calibration: Calibration of the shares.

    Returns:
        `scores` (see `calibration_scores`); `risk_coverage` of 1 - MCCS by `agreement`; `precision_recall` of all
        findings by one threshold on the probabilities, and `points`, precision and recall of the greedy and of the
        chosen reports; JSON-serializable.
    """
    texts = {name: [str(row[name]) for row in rows] for name in ("prediction", "greedy", "target")}
    labels = dict(zip(texts, label_together(labeler, *texts.values()), strict=True))
    labels = {name: own.cpu() for name, own in labels.items()}
    found = stated(labels["target"])[:, : len(THIRTEEN)]
    shares = torch.tensor([list(row["shares"].values()) for row in rows], dtype=torch.float64)
    calibrated = None if calibration is None else calibration(shares)
    written = has_text(texts["prediction"])
    assert written is not None
    risk = 1 - mccs(labels["prediction"], labels["target"], margin, reduction="none") * written
    agreement = torch.tensor([row["agreement"] for row in rows], dtype=torch.float64)
    points = {
        name: {score: float(ce_f1(labels[key], labels["target"], score=score)) for score in ("precision", "recall")}
        for name, key in (("greedy", "greedy"), ("chosen", "prediction"))
    }
    curve = risk_coverage(agreement, risk)
    shown = torch.linspace(0, len(rows) - 1, min(len(rows), 100)).long().tolist()
    curve |= {key: [curve[key][i] for i in shown] for key in ("coverage", "risk")}
    return {
        "scores": calibration_scores(shares, found, calibrated),
        "risk_coverage": curve,
        "precision_recall": precision_recall(shares if calibrated is None else calibrated, found),
        "points": points,
    }


def format_choices(choices: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The printed table of `compare_choices`, in percent."""
    lines = ["In percent, with 95 % bootstrap intervals of the difference to greedy, paired by study:"]
    table = [["", *(name.removeprefix("CE-F1 ") for name in SHOWN)]]
    for name, row in choices.items():
        cells = []
        for score in SHOWN:
            text = percent(row[score]["value"])
            if name != "greedy" and "difference" in row[score]:
                gap = (100 * row[score][key] for key in ("difference", "low", "high"))
                text += " {:+.1f} [{:+.1f},{:+.1f}]".format(*gap)
            cells.append(text)
        table.append([name, *cells])
    return "\n".join([*lines, *columns(table)])


def format_calibration(scores: Mapping[str, Any]) -> str:
    """The printed calibration, in percent."""
    lines = []
    for side, title in (("shares", "share of samples"), ("calibrated", "calibrated")):
        if side in scores:
            own = scores[side]
            lines.append(
                f"Probabilities of findings, {title}: ECE {100 * own['ece']:.1f} (mean of the 13 conditions "
                f"{100 * own['mean_ece']:.1f}), Brier score {100 * own['brier']:.1f}."
            )
    return "\n".join(lines)


def format_cost(cost: Mapping[str, float], num_samples: int) -> str:
    """One line: tokens and seconds of the samples, next to those of greedy decoding."""
    return (
        f"Cost per study: {num_samples} samples {cost['tokens'] / cost['studies']:,.0f} tokens and "
        f"{cost['seconds'] / cost['studies']:.2f} s, greedy {cost['greedy_tokens'] / cost['studies']:,.0f} tokens and "
        f"{cost['greedy_seconds'] / cost['studies']:.2f} s, {cost['seconds'] / max(cost['greedy_seconds'], 1e-9):.1f} "
        "times the time."
    )
