"""Several systems on the same references, ranked, next to baselines that do not look at images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrg.errors import UserError
from mrg.metrics.conditions import CONVENTIONS, THIRTEEN, stated
from mrg.metrics.constants import BEST, BestConstants
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems, format_span
from mrg.metrics.labels import Labeler, Scorer, run_labeler
from mrg.metrics.remarks import wrapped
from mrg.metrics.resampling import MIN_CASES
from mrg.metrics.tables import columns, percent

NORMAL, REFERENCE = "constant normal", "best reference"
SCORES = ("MCCS", *(f"CE-F1 {name}" for name in CONVENTIONS))
COLUMNS = ("CE-F1 micro-13+", "CE-F1 macro-13+", "CE-F1 micro-14+", "CE-F1 micro-5+", "CE-F1 example-14", "MCCS")


def best_reference(target: Sequence[str], labeler: Labeler) -> str:
    """The reference with the highest CE-F1 micro-13+ if every study has it; ties go to the first in alphabetical order.

    Unlike `mrg.metrics.constants.BestConstants`, it needs no training reports.

    Args:
        target: N references.
        labeler: Labeler, or any callable of its form; called once.

    Raises:
        UserError: If there is no reference.
    """
    if not target:
        raise UserError("Expected argument `target` to hold at least one reference, but got none.")
    texts = sorted(set(target))
    found = stated(run_labeler(labeler, texts))[:, : len(THIRTEEN)].double()
    place = {text: row for row, text in enumerate(texts)}
    support = found[[place[text] for text in target]].sum(0)
    # TP of a constant is the support of its findings; TP + FP is N for each of them.
    total = len(target) * found.sum(1) + support.sum()
    scores = 2 * (found @ support) / total.clamp(min=1)
    return texts[int(scores.argmax())]


def leaderboard(
    systems: Mapping[str, Sequence[str]],
    target: Sequence[str],
    labeler: Labeler,
    margin: float = 0.5,
    num_resamples: int = 1000,
    seed: int = 0,
    scorers: Mapping[str, Scorer] | None = None,
    rank_by: str = COLUMNS[0],
    best: BestConstants | None = None,
    min_cases: int = MIN_CASES,
) -> dict[str, Any]:
    """Score and rank systems next to the constant normal report and the best reference.

    Args:
        systems: Name -> N generated reports.
        target: N references.
        labeler: Labeler, or any callable of its form.
        margin: Margin of MCCS.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        scorers: Name -> further score per report.
        rank_by: Score of the ranking, one of `SCORES`.
        best: Best constants on the training reports, found with the same labeler and margin.
        min_cases: Fewest references with a condition that counts in informedness.

    Returns:
        Return value of `mrg.metrics.evaluation.evaluate_systems` with `ranking`, the text of the `best_reference`,
        `against` (the constant of the differences: the best one on the training reports if `best` is given, otherwise
        the best reference), and `beats`: system -> difference from it in `rank_by` with its 95 % interval, and whether
        the interval lies above 0.

    Raises:
        UserError: If a system has a baseline's name, a system does not have N reports, or `rank_by` is unknown.
    """
    if rank_by not in SCORES:
        raise UserError(f"Expected the score to rank by to be one of {', '.join(SCORES)}, but got {rank_by!r}.")
    taken = [name for name in (NORMAL, REFERENCE, BEST) if name in systems]
    if taken:
        raise UserError(f"{taken[0]!r} is the name of a baseline: give the system another name.")
    reference = best_reference(target, labeler)
    rows = {**systems, NORMAL: [CONSTANT_NORMAL] * len(target), REFERENCE: [reference] * len(target)}
    result = evaluate_systems(
        rows, target, labeler, margin, None, [(name, REFERENCE) for name in systems], num_resamples, seed, scorers,
        best, min_cases, rank_by,
    )  # fmt: skip
    gaps = result["differences"] if best is None else result["best_constant"]["differences"]
    beats = {
        gap["a"]: {key: gap[key] for key in ("value", "low", "high")} | {"beats": gap["low"] > 0}
        for gap in gaps
        if gap["score"] == rank_by and gap["a"] in systems
    }
    return {**result, "best_reference": reference, "against": REFERENCE if best is None else BEST, "beats": beats}


def describe_constant(result: Mapping[str, Any]) -> str:
    """The constant that the systems of a `leaderboard` are compared with: its name, and its text or conditions."""
    best = BestConstants.read(result["best_constant"])
    if best is None:
        return f'{REFERENCE}: "{result["best_reference"]}"'
    by = result["ranking"]["by"]
    return f"{BEST} of {by} on {best.num_reports:,} training reports: {best.describe(by)}"


def format_leaderboard(result: Mapping[str, Any]) -> str:
    """The printed form, in percent: the ranking, the differences from the best constant, and every convention."""
    ranking, systems = result["ranking"], result["systems"]
    by, best = ranking["by"], result["best_constant"]
    others = [name for name in COLUMNS if name != by]
    extras = [name for name in next(iter(systems.values()))["scores"] if name not in (*SCORES, "informedness")]
    head = ["rank", *(name.removeprefix("CE-F1 ") for name in (by, *others)), *extras, "first", "distinct"]
    table = [["", *head]]
    for name, rank in ranking["systems"].items():
        row = systems[name]
        cells = _cells(row["scores"], by, others) + [f"{row['scores'][extra]['value']:.3f}" for extra in extras]
        shares = [f"{100 * share:.0f} %" for share in (rank["first"], row["distinct"])]
        table.append([name, f"{rank['rank']} [{rank['low']}-{rank['high']}]", *cells, *shares])
    if best is not None:
        table.append([BEST, "-", *_cells(best["scores"], by, others), *["-" for _ in extras], "-", "-"])
    lines = [
        f"{result['num_studies']:,} studies, labeler {result['labeler']}, ranked by {by}, in percent, with "
        "95 % bootstrap intervals over studies.",
        "rank: with the 95 % interval over the samples. first: share of the samples in which no other is better.",
        "",
        *columns(table),
        "",
        *wrapped([f"Differences from the {describe_constant(result)}"]),
    ]
    gaps = [
        [f"  {name}", f"{format_span(gap, sign='+')}: {'beats it' if gap['beats'] else 'does not beat it'}"]
        for name, gap in result["beats"].items()
    ]
    width = max(len(name) for name, _ in gaps) + 2
    lines += [name.ljust(width) + text for name, text in gaps]
    known = {name: systems[name]["scores"] for name in ranking["systems"]}
    if best is not None:
        known[BEST] = best["scores"]
    every = [[c, *(percent(own[f"CE-F1 {c}"]["value"]) for own in known.values())] for c in CONVENTIONS]
    names = "13: without No Finding; +: uncertain counts as positive, otherwise as negative; 0/0 = 0."
    names = f"MCCS margin {result['margin']:g}. {names}"
    return "\n".join([*lines, "", *columns([["CE-F1", *known], *every]), names])


def _cells(scores: Mapping[str, Mapping[str, float]], by: str, others: Sequence[str]) -> list[str]:
    return [format_span(scores[by]).replace(", ", ","), *(percent(scores[name]["value"]) for name in others)]
