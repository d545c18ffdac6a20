"""Several systems on the same references, ranked, beside what needs no image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mrg.metrics.conditions import THIRTEEN
from mrg.metrics.conventions import CONVENTIONS
from mrg.metrics.labels import Labeler, Scorer
from mrg.metrics.results import CONSTANT_NORMAL, evaluate_systems

NORMAL, CONSTANT = "constant normal", "best constant"
SCORES = ("MCCS", *(f"CE-F1 {name}" for name in CONVENTIONS))
COLUMNS = ("CE-F1 micro-13+", "CE-F1 macro-13+", "CE-F1 micro-14+", "CE-F1 micro-5+", "CE-F1 example-14", "MCCS")


def best_constant(target: Sequence[str], labeler: Labeler) -> str:
    """The reference that scores best by micro-13+ if it is written for every study; of equals the alphabetically first.

    A system that does not beat it has not shown that it looks at images.

    Args:
        target: References.
        labeler: See `mrg.metrics.labelers.base.Labeler`.

    Raises:
        ValueError: If there is no reference.
    """
    if not target:
        raise ValueError("Expected argument `target` to hold at least one reference, but got none.")
    texts = sorted(set(target))
    labels = labeler(texts)[:, : len(THIRTEEN)]
    found = torch.isin(labels, torch.tensor([1, 3])).double()
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
) -> dict[str, Any]:
    """Score and rank systems beside the constant normal report and the best constant report.

    Args:
        systems: Name to generated reports, each as long as `target`.
        target: References.
        labeler: See `mrg.metrics.labelers.base.Labeler`.
        margin: Margin of MCCS.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        scorers: Name to a further score per report.
        rank_by: Score of the ranking, a name of `SCORES`.

    Returns:
        The dict of `mrg.metrics.results.evaluate_systems`, with `ranking` (see `mrg.metrics.results.ranks`), the text
        of the best constant as `best_constant`, and `beats`: name to the difference to the best constant in `rank_by`,
        its 95 % interval, and `beats`, whether that interval lies above 0.

    Raises:
        ValueError: If a system has a baseline's name or another length, or `rank_by` is unknown.
    """
    if rank_by not in SCORES:
        raise ValueError(f"Expected the score to rank by to be one of {', '.join(SCORES)}, but got {rank_by!r}.")
    taken = [name for name in (NORMAL, CONSTANT) if name in systems]
    if taken:
        raise ValueError(f"{taken[0]!r} is the name of a baseline: give the system another name.")
    constant = best_constant(target, labeler)
    rows = {**systems, NORMAL: [CONSTANT_NORMAL] * len(target), CONSTANT: [constant] * len(target)}
    differences = [(name, CONSTANT) for name in systems]
    result = evaluate_systems(
        rows, target, labeler, margin, None, differences, num_resamples, seed, scorers, rank_by=rank_by
    )
    gaps = {gap["a"]: gap for gap in result["differences"] if gap["score"] == rank_by}
    result["best_constant"] = constant
    result["beats"] = {
        name: {**{key: gap[key] for key in ("value", "low", "high")}, "beats": gap["low"] > 0}
        for name, gap in gaps.items()
    }
    return result


def format_leaderboard(result: Mapping[str, Any]) -> str:
    """The printed form, in percent: the ranking, who beats the best constant, every convention."""
    ranking, systems = result["ranking"], result["systems"]
    width = max(map(len, systems)) + 1
    extras = [name for name in next(iter(systems.values()))["scores"] if name not in SCORES]
    lines = [
        f"{result['num_studies']:,} studies, labeler {result['labeler']}, ranked by {ranking['by']}, in percent, with "
        "95 % bootstrap intervals over studies.",
        "rank: with the 95 % interval over the samples. first: share of the samples in which no other is better.",
        "",
        f"{'rank':<11}{'':<{width}}{ranking['by'].removeprefix('CE-F1 '):>20}"
        + "".join(f"{name.removeprefix('CE-F1 '):>12}" for name in COLUMNS if name != ranking["by"])
        + "".join(f"{name:>{max(12, len(name) + 2)}}" for name in extras)
        + f"{'first':>8}{'distinct':>10}",
    ]
    for name, rank in ranking["systems"].items():
        scores, place = systems[name]["scores"], f"{rank['rank']} [{rank['low']}-{rank['high']}]"
        first = scores[ranking["by"]]
        span = f"{100 * first['value']:.1f} [{100 * first['low']:.1f},{100 * first['high']:.1f}]"
        lines.append(
            f"{place:<11}{name:<{width}}{span:>20}"
            + "".join(f"{100 * scores[column]['value']:>12.1f}" for column in COLUMNS if column != ranking["by"])
            + "".join(f"{scores[column]['value']:>{max(12, len(column) + 2)}.3f}" for column in extras)
            + f"{100 * rank['first']:>6.0f} %{100 * systems[name]['distinct']:>8.0f} %"
        )
    lines += ["", f"Against the best constant, {result['best_constant']!r}:"]
    for name, gap in result["beats"].items():
        verdict = "beats it" if gap["beats"] else "does not beat it"
        lines.append(
            f"  {name:<{width}}{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]: {verdict}"
        )
    names = list(ranking["systems"])
    columns = [max(7, len(name) + 2) for name in names]
    lines += ["", f"{'CE-F1':<14}" + "".join(f"{name:>{w}}" for name, w in zip(names, columns, strict=True))]
    for convention in CONVENTIONS:
        values = (100 * systems[name]["scores"][f"CE-F1 {convention}"]["value"] for name in names)
        lines.append(f"{convention:<14}" + "".join(f"{v:>{w}.1f}" for v, w in zip(values, columns, strict=True)))
    return "\n".join(lines)
