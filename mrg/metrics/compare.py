"""Two systems on the same studies: paired differences, and the studies in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.conditions import THIRTEEN, stated
from mrg.metrics.evaluation import is_share
from mrg.metrics.imports import name_of
from mrg.metrics.labels import Labeler, Scorer, check_pairs, label_together, require_reports
from mrg.metrics.mccs import mccs
from mrg.metrics.resampling import MIN_CASES, ReportSums, bootstrap, percentile_interval, randomization_p


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
    min_cases: int = MIN_CASES,
) -> dict[str, Any]:
    """Compare two systems by every score.

    Args:
        preds: N reports of the first system.
        other: N reports of the second system.
        target: N reference reports.
        labeler: Labeler, or any callable of its form; called once.
        ids: N names of the studies; their numbers by default.
        margin: Margin of MCCS.
        num_trials: Number of bootstrap samples, and of randomization trials.
        seed: Seed of both.
        scorers: Name -> further score per report.
        min_cases: Fewest references with a condition that counts in informedness.

    Returns:
        JSON-serializable dict: `num_studies`, `labeler`, `margin`, `min_cases`, `num_trials`; `scores`, name ->
        `value`, `other`, `difference`, its 95 % interval `low` and `high`, and `p` by approximate randomization; and
        `changed`, the studies with a finding that only one system gets right, those with most such findings first:
        `better` and `worse`, right in the first and in the second system alone, and `hallucinated`, those of them that
        the reference does not state, and the other system does.

    Raises:
        UserError: If lengths differ or there is no study.
        UserTypeError: If a report is not a string.
    """
    names = [str(i) for i in range(1, len(target) + 1)] if ids is None else list(ids)
    if len(names) != len(target):
        raise UserError(f"Expected argument `ids` to have {len(target)} names, but got {len(names)}.")
    for texts in (preds, other):
        check_pairs(texts, target)
    a, b, reference = label_together(labeler, preds, other, target)
    require_reports(reference)
    sums = [
        ReportSums.of(texts, labels, target, reference, margin, scorers, min_cases)
        for texts, labels in ((preds, a), (other, b))
    ]
    return {
        "num_studies": len(target),
        "labeler": name_of(labeler),
        "margin": margin,
        "min_cases": min_cases,
        "num_trials": num_trials,
        "scores": _paired(sums, num_trials, seed),
        "changed": _changed(a, b, reference, names, margin),
    }


def _paired(sums: Sequence[ReportSums], num_trials: int, seed: int) -> dict[str, dict[str, float]]:
    samples, p_values = bootstrap(sums, num_trials, seed), randomization_p(sums[0], sums[1], num_trials, seed)
    corpus, other = (own.corpus() for own in sums)
    scores = {}
    for name, value in corpus.items():
        low, high = percentile_interval(samples[0][name] - samples[1][name])
        scores[name] = {"value": value, "other": other[name], "difference": value - other[name]}
        scores[name] |= {"low": low, "high": high, "p": p_values[name]}
    return scores


def changes(preds: Tensor, other: Tensor, target: Tensor) -> list[dict[str, list[int]]]:
    """Findings that only one of two systems gets right, study by study.

    A system is right about a finding if it states it, as certain or as possible, exactly when the reference does.

    Args:
        preds: (N, 14) label classes of the first system.
        other: (N, 14) label classes of the second system.
        target: (N, 14) label classes of the references.

    Returns:
        N dicts of positions in `THIRTEEN`: `gained`, right in `preds` alone, and `lost`, right in `other` alone.
    """
    right, other_right = (stated(labels)[:, :13] == stated(target)[:, :13] for labels in (preds, other))
    gained, lost = (right & ~other_right).tolist(), (other_right & ~right).tolist()
    return [
        {name: [i for i, is_set in enumerate(row) if is_set] for name, row in (("gained", g), ("lost", k))}
        for g, k in zip(gained, lost, strict=True)
    ]


def _changed(a: Tensor, b: Tensor, target: Tensor, names: Sequence[str], margin: float) -> list[dict[str, Any]]:
    similarity, other = (mccs(labels, target, margin, reduction="none").tolist() for labels in (a, b))
    found = stated(target).tolist()
    rows = [
        {
            "id": names[i],
            "mccs": similarity[i],
            "other_mccs": other[i],
            "better": [THIRTEEN[c] for c in change["gained"]],
            "worse": [THIRTEEN[c] for c in change["lost"]],
            "hallucinated": [THIRTEEN[c] for c in (*change["gained"], *change["lost"]) if not found[i][c]],
        }
        for i, change in enumerate(changes(a, b, target))
        if change["gained"] or change["lost"]
    ]
    return sorted(rows, key=lambda r: (-len(r["better"]) - len(r["worse"]), -abs(r["mccs"] - r["other_mccs"]), r["id"]))


def format_comparison(result: Mapping[str, Any], names: tuple[str, str], num_changed: int = 10) -> str:
    """The printed table of `compare_systems`, in percent, A being the first of `names`."""
    trials = result["num_trials"]
    places = max(4, len(str(trials - 1)))  # the smallest p is 1 / (trials + 1)
    lines = [
        f"A: {names[0]}",
        f"B: {names[1]}",
        f"{result['num_studies']:,} studies, labeler {result['labeler']}, MCCS margin {result['margin']:g}. "
        "In percent, paired by study.",
        f"95 % bootstrap intervals of A - B; two-sided p by approximate randomization; {trials:,} trials each.",
        "p-values are not corrected for multiple comparisons.",
        "",
        f"{'':<22}{'A':>7}{'B':>7}{'A - B':>8}{'95 % interval':>18}{'p':>9}",
    ]
    for name, row in result["scores"].items():
        scale, digits = (100, 1) if is_share(name) else (1, 3)
        value, other = (f"{scale * row[key]:.{digits}f}" for key in ("value", "other"))
        gap, low, high = (f"{scale * row[key]:+.{digits}f}" for key in ("difference", "low", "high"))
        lines.append(f"{name:<22}{value:>7}{other:>7}{gap:>8}{f'[{low}, {high}]':>18}{row['p']:>9.{places}f}")
    changed = result["changed"]
    noun = "study has" if len(changed) == 1 else "studies have"
    lines += ["", f"{len(changed):,} {noun} a finding that only one of the two gets right."]
    if changed and num_changed:
        width = max(len(row["id"]) for row in changed[:num_changed])
        lines.append("Correct: stated (positive or uncertain) exactly if the reference states it.")
        lines.append("Hallucinated: the reference does not state it, and the system that is not correct does.")
        lines.append(f"{'':<{width}}{'MCCS A':>8}{'B':>6}   + correct in A only, - correct in B only")
        for row in changed[:num_changed]:
            findings = ", ".join([*(f"+{c}" for c in row["better"]), *(f"-{c}" for c in row["worse"])])
            if wrong := row["hallucinated"]:
                every = len(wrong) == len(row["better"]) + len(row["worse"])
                findings += " (hallucinated)" if every else f" (hallucinated: {', '.join(wrong)})"
            lines.append(f"{row['id']:<{width}}{100 * row['mccs']:>8.0f}{100 * row['other_mccs']:>6.0f}   {findings}")
    return "\n".join(lines)
