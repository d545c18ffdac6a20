"""Two systems on the same studies: paired differences, and the studies in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.conditions import POSITIVE, THIRTEEN, UNCERTAIN
from mrg.metrics.labels import Labeler, Scorer, as_labels, require_reports, written
from mrg.metrics.mccs import mccs
from mrg.metrics.resampling import ReportSums, bootstrap, percentile_interval, randomization_p


def compare_systems(
    preds: Sequence[str],
    other: Sequence[str],
    target: Sequence[str],
    labeler: Labeler,
    ids: Sequence[str] | None = None,
    margin: float = 0.5,
    num_trials: int = 10_000,
    seed: int = 0,
    scorers: Mapping[str, Scorer] | None = None,
) -> dict[str, Any]:
    """Compare two systems by every score.

    Args:
        preds: N reports of the one system.
        other: N reports of the other one.
        target: N reference reports.
        labeler: See `mrg.metrics.labelers.base.Labeler`.
        ids: N names of the studies; their numbers by default.
        margin: Of MCCS.
        num_trials: Of the bootstrap and of the randomisation.
        seed: Of both.
        scorers: Name to a further score per report.

    Returns:
        A dict that json can write: `num_studies`, `labeler`, `margin`, `num_trials`; `scores`, name -> `value`,
        `other`, `difference`, its 95 % bootstrap interval `low` and `high`, and `p` by approximate randomisation; and
        `changed`, the studies in which a finding is right in one system only, those with most of them first.

    Raises:
        ValueError: If lengths differ or there is no study.
        TypeError: If a report is not a string.
    """
    names = [str(i) for i in range(1, len(target) + 1)] if ids is None else list(ids)
    if len(names) != len(target):
        raise UserError(f"Expected argument `ids` to have {len(target)} names, but got {len(names)}.")
    a, reference = as_labels(preds, target, labeler)
    b, _ = as_labels(other, reference, labeler)
    require_reports(reference)
    sums = []
    for labels, texts in ((a, preds), (b, other)):
        extras = {name: torch.as_tensor(scorer(texts, target)) for name, scorer in (scorers or {}).items()}
        sums.append(ReportSums(labels, reference, margin, written(list(texts)), extras))
    drawn = bootstrap(sums, num_trials, seed)
    p_values = randomization_p(sums[0], sums[1], num_trials, seed)
    corpus, other_corpus = (s.corpus() for s in sums)
    scores = {}
    for name, value in corpus.items():
        low, high = percentile_interval(drawn[0][name] - drawn[1][name])
        scores[name] = {
            "value": value,
            "other": other_corpus[name],
            "difference": value - other_corpus[name],
            "low": low,
            "high": high,
            "p": p_values[name],
        }
    return {
        "num_studies": len(target),
        "labeler": getattr(labeler, "name", type(labeler).__name__),
        "margin": margin,
        "num_trials": num_trials,
        "scores": scores,
        "changed": _changed(a, b, reference, names, margin),
    }


def _changed(a: Tensor, b: Tensor, target: Tensor, names: Sequence[str], margin: float) -> list[dict[str, Any]]:
    present = [torch.isin(labels[:, :13], torch.tensor([POSITIVE, UNCERTAIN])) for labels in (a, b, target)]
    right_a, right_b = present[0] == present[2], present[1] == present[2]
    similarity = [mccs(labels, target, margin, reduction="none").tolist() for labels in (a, b)]
    rows = []
    for i in (right_a != right_b).any(1).nonzero().flatten().tolist():
        better = [c for c, x, y in zip(THIRTEEN, right_a[i], right_b[i], strict=True) if x and not y]
        worse = [c for c, x, y in zip(THIRTEEN, right_a[i], right_b[i], strict=True) if y and not x]
        rows.append(
            {"id": names[i], "mccs": similarity[0][i], "other_mccs": similarity[1][i], "better": better, "worse": worse}
        )
    return sorted(rows, key=lambda r: (-len(r["better"]) - len(r["worse"]), -abs(r["mccs"] - r["other_mccs"]), r["id"]))


def format_comparison(result: Mapping[str, Any], names: tuple[str, str], num_changed: int = 10) -> str:
    """The printed form, in percent points, A being the first of `names`."""
    lines = [
        f"A: {names[0]}",
        f"B: {names[1]}",
        f"{result['num_studies']:,} studies, labeler {result['labeler']}, MCCS margin {result['margin']:g}. Paired by "
        f"study: 95 % bootstrap interval of A - B, and",
        f"two-sided p by approximate randomisation, {result['num_trials']:,} trials each. p is that of one row alone: "
        "choose the row before you look.",
        "",
        f"{'':<22}{'A':>7}{'B':>7}{'A - B':>8}{'95 % interval':>18}{'p':>9}",
    ]
    for name, row in result["scores"].items():
        # Ours are shares, shown in percent; what range a scorer of the user's has is not known.
        by, digits = (100, 1) if name == "MCCS" or name.startswith("CE-F1 ") else (1, 3)
        cells = (f"{by * row[key]:.{digits}f}" for key in ("value", "other"))
        span = f"[{by * row['low']:+.{digits}f}, {by * row['high']:+.{digits}f}]"
        value, other = cells
        lines.append(f"{name:<22}{value:>7}{other:>7}{by * row['difference']:>+8.{digits}f}{span:>18}{row['p']:>9.4f}")
    changed = result["changed"]
    noun = "study" if len(changed) == 1 else "studies"
    lines += ["", f"{len(changed):,} {noun} with a finding that only one of them has right."]
    if changed and num_changed:
        width = max(len(row["id"]) for row in changed[:num_changed])
        lines.append(f"{'':<{width}}{'MCCS A':>8}{'B':>6}   + right in A only, - right in B only")
        for row in changed[:num_changed]:
            findings = ", ".join([*(f"+{c}" for c in row["better"]), *(f"-{c}" for c in row["worse"])])
            lines.append(f"{row['id']:<{width}}{100 * row['mccs']:>8.0f}{100 * row['other_mccs']:>6.0f}   {findings}")
    return "\n".join(lines)
