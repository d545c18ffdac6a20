"""What a reward pays to reports that need no look at the image: the exploits that a policy can find.

| report | written for each study |
|---|---|
| no report | an empty completion |
| constant normal | the constant normal report |
| best constant | the training report with the highest mean of the parts that depend on labels |
| constant opacity | a lung opacity |
| all positive | each of the 13 findings |
| hedged | each of the 13 findings as possible |
| copied | the report of another study: the one with the most similar image, or the one before |
| perfect | the reference |

`of perfect` is the reward's place between the lowest of the constant reports (0) and the perfect one (1), so that it
changes neither with the scale of the reward nor with a number that every report gets, such as a valid format; it is
negative for what gets less. The cheapest exploit is the highest of the reports that are the same for every
study.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.log import log
from mrg.metrics.conditions import THIRTEEN
from mrg.metrics.evaluation import CONSTANT_NORMAL, most_frequent_report
from mrg.metrics.labels import run_labeler
from mrg.metrics.trl import RewardError
from mrg.modules.completion import target_text
from mrg.modules.rl.normal_bias import learn_all
from mrg.modules.rl.reward import Reward

OPACITY = "There is a lung opacity."
FINDINGS: dict[str, str] = {
    "Enlarged Cardiomediastinum": "widening of the mediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung opacity",
    "Lung Lesion": "lung nodule",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "rib fracture",
    "Support Devices": "central venous catheter",
}
"""Condition -> words that state it."""
ALL_POSITIVE = " ".join(f"There is {FINDINGS[name]}." for name in THIRTEEN)
HEDGED = " ".join(f"Possible {FINDINGS[name]}." for name in THIRTEEN)
LOOKS = ("copied", "perfect")
"""Reports that depend on the study."""
TOO_CHEAP = 1 / 3
"""Place of the cheapest exploit from which `fit` warns."""
FEWEST = 20
"""Number of studies below which it does not, because means over them say little."""


@dataclasses.dataclass(frozen=True)
class AuditRow:
    """What one of the reports above is paid.

    Args:
        name: Row of the table above.
        reward: Mean reward over the studies to which it applies; nan if there are none.
        of_perfect: Place between the lowest constant report and the perfect one; 0 if all are equal.
        parts: Name -> mean of the unweighted part.
        text: The report, if it is the same for every study.
    """

    name: str
    reward: float
    of_perfect: float
    parts: dict[str, float]
    text: str


def audit(
    reward: Reward, reports: Sequence[str], study_id: Sequence[str], copied: Sequence[str] | None = None
) -> list[AuditRow]:
    """Compute what the reports above are paid.

    Args:
        reward: The reward; parts that are computed from training reports learn from `reports`.
        reports: N reference reports.
        study_id: N ids of the studies.
        copied: N reports of the studies with the most similar images; those of the studies before by default.

    Returns:
        Rows of the table above, in its order.

    Raises:
        UserError: If there are fewer than two reports.
        RewardError: If the labeler or a scorer fails.
    """
    if len(reports) < 2:
        raise UserError(f"Expected at least two training reports to audit the reward with, but got {len(reports)}.")
    learn_all(
        {name: part for name, part in reward.normal_bias.items() if part.learned is None}, reports, reward.labeler
    )
    constants = {
        "constant normal": CONSTANT_NORMAL,
        "best constant": best_constant(reward, reports),
        "constant opacity": OPACITY,
        "all positive": ALL_POSITIVE,
        "hedged": HEDGED,
    }
    written: dict[str, Sequence[str]] = {name: [text] * len(reports) for name, text in constants.items()}
    written |= {"copied": copied or [reports[-1], *reports[:-1]], "perfect": reports}
    found = {"no report": _means(reward, [""] * len(reports), reports, study_id)}
    for name, texts in written.items():
        rows = run_labeler(reward.labeler, list(texts)).cpu()
        completions = [target_text(text, row, reward.think) for text, row in zip(texts, rows, strict=True)]
        found[name] = _means(reward, completions, reports, study_id)
    lowest, perfect = min(found[name][0] for name in constants), found["perfect"][0]
    return [
        AuditRow(
            name, total, (total - lowest) / (perfect - lowest) if perfect > lowest else 0.0, parts,
            constants.get(name, ""),
        )
        for name, (total, parts) in found.items()
    ]  # fmt: skip


def best_constant(reward: Reward, reports: Sequence[str]) -> str:
    """The training report with the highest mean of the weighted parts that depend on labels.

    Ties, and rewards without such a part, take the most frequent report.
    """
    labels = run_labeler(reward.labeler, list(reports)).cpu()
    rows, place, counts = torch.unique(labels, dim=0, return_inverse=True, return_counts=True)
    means = torch.stack([_label_reward(reward, row.expand_as(rows), rows) @ counts.double() for row in rows])
    highest = float(means.max())
    chosen = (means[place] >= highest - 1e-9 * len(reports)).tolist()
    return most_frequent_report([text for text, best in zip(reports, chosen, strict=True) if best])


def _label_reward(reward: Reward, preds: Tensor, target: Tensor) -> Tensor:
    """(N,) weighted sum of the parts that depend on labels."""
    parts = reward.label_parts(preds, target)
    return torch.stack([reward.weights[name] * part.double().cpu() for name, part in parts.items()]).sum(0)


def _means(
    reward: Reward, texts: Sequence[str], target: Sequence[str], study_id: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """Mean reward, and the mean of each part, over the studies that have one."""
    rewards = reward(texts, target, study_id)
    total = rewards.total if rewards.scored is None else rewards.total[rewards.scored]
    here: Mapping[str, Tensor] = rewards.present
    parts = {name: part[here[name]] if name in here else part for name, part in rewards.parts.items()}
    return float(total.mean()), {name: float(part.double().mean()) for name, part in parts.items() if len(part)}


def cheapest(rows: Sequence[AuditRow]) -> AuditRow:
    """The highest of the reports that are the same for every study, the first among equals."""
    return max((row for row in rows if row.name not in LOOKS), key=lambda row: row.reward)


def verdict(rows: Sequence[AuditRow], quote: bool = True) -> list[str]:
    """Sentences on what the reward can be exploited by; with `quote`, the first has the text of the exploit."""
    worst = cheapest(rows)
    copied = next(row for row in rows if row.name == "copied")
    text = f' ("{worst.text}")' if quote and worst.text else ""
    found = [f"Cheapest exploit: {worst.name}{text}, at {100 * worst.of_perfect:.0f} % of the perfect report."]
    if worst.reward >= copied.reward:
        found.append(
            "It is paid as much as a report copied from another study, or more: the reward favors not looking."
        )
    if worst.name == "no report":
        found.append("Writing nothing is paid most: shift the parts of the reward so that none is negative.")
    return found


def warn_of_exploits(reward: Reward, studies: Sequence[Study]) -> None:
    """Log a warning if the cheapest exploit is paid almost like a perfect report.

    Args:
        reward: The reward.
        studies: Training studies; up to 300 evenly spaced ones are used, or 32 if there are scorers, which may be slow.
    """
    most = 32 if reward.scorers else 300
    chosen = [studies[i] for i in range(0, len(studies), max(1, -(-len(studies) // most)))]
    if len(chosen) < FEWEST:
        return
    try:
        worst = cheapest(rows := audit(reward, [s.report for s in chosen], [s.id for s in chosen]))
    except RewardError:
        return  # the first round fails in the same way, and then names what was written
    if worst.of_perfect >= TOO_CHEAP:
        # The best constant is a training report, which no log may hold.
        log.warning(verdict(rows, quote=False)[0] + " It ignores the image: see `mrg audit`, and docs/metrics.md.")


def format_audit(rows: Sequence[AuditRow], weights: Mapping[str, float]) -> str:
    """Table of the rows, in percent of the perfect report, with the means of the parts that have a weight."""
    names = [name for name, weight in weights.items() if weight]
    head = ["report", "of perfect", "reward", *names]
    lines = [
        [
            row.name,
            f"{100 * row.of_perfect:.1f} %",
            f"{row.reward:.3f}",
            *(f"{row.parts[name]:.3f}" if name in row.parts else "–" for name in names),
        ]
        for row in rows
    ]
    widths = [max(len(line[k]) for line in [head, *lines]) for k in range(len(head))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in [head, *lines]
    )
