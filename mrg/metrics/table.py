"""Clinical efficacy in every convention at once, with what a report that finds nothing earns in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from mrg.metrics.ce import average_score, ce_f1, condition_counts, confusion
from mrg.metrics.conditions import CONDITIONS, NUM_CONDITIONS, POSITIVE
from mrg.metrics.conventions import CONVENTIONS, FAMILIES, SCORES, convention
from mrg.metrics.labels import Labeler, Reports, as_labels, require_reports


@dataclasses.dataclass(frozen=True)
class CETable:
    """Scores in [0, 1]; `print` it for the table in percent.

    Args:
        num_reports: N.
        scores: Convention -> `precision`, `recall`, `f1`, and `normal`: the F1 of a report that states No Finding and
            nothing else, on the same references.
        conditions: Condition -> `precision`, `recall`, `f1`, and `support`: how many references have it. Uncertain
            counts as positive.
    """

    num_reports: int
    scores: dict[str, dict[str, float]]
    conditions: dict[str, dict[str, float]]

    def __str__(self) -> str:
        """The printed form, at most 100 columns wide."""
        lines = [
            f"CE of {self.num_reports:,} reports, in percent. The number is that of the conditions: 14, 13 (without No",
            "Finding) or 5; + counts uncertain as positive, otherwise it is negative; 0/0 is 0. The last number",
            "is the F1 of a report that always says that all is normal.",
            "",
            f"{'convention':<14}{'precision':>10}{'recall':>8}{'F1':>7}{'normal':>8}   reported by",
        ]
        for name, row in self.scores.items():
            values = [f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1", "normal")]
            users = ", ".join(family for family, members in FAMILIES.items() if name in members)
            line = f"{name:<14}{values[0]:>10}{values[1]:>8}{values[2]:>7}{values[3]:>8}   {users}"
            lines.append(line.rstrip())
        lines += ["", f"{'condition (+)':<28}{'precision':>10}{'recall':>8}{'F1':>7}{'support':>9}"]
        for name, row in self.conditions.items():
            precision, recall, f1 = ("-" if row[s] != row[s] else f"{100 * row[s]:.1f}" for s in
                                     ("precision", "recall", "f1"))  # fmt: skip
            lines.append(f"{name:<28}{precision:>10}{recall:>8}{f1:>7}{int(row['support']):>9,}")
        return "\n".join(lines)


def ce_table(
    preds: Reports, target: Reports, labeler: Labeler | None = None, conventions: Sequence[str] | str | None = None
) -> CETable:
    """Compute CE in many conventions.

    Args:
        preds: N generated reports: (N, 14) label classes, or strings with a `labeler`.
        target: N reference reports in either form.
        labeler: Labels strings.
        conventions: Names from `CONVENTIONS` or `FAMILIES`, or one such name; all of `CONVENTIONS` by default.

    Raises:
        ValueError: If a name is unknown, a label is no label class, lengths differ, or there is no report.
        TypeError: If a report is neither a label row nor a string.

    Example:
        >>> target = torch.tensor([[0, 1, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0]])
        >>> ce_table(target, target, conventions="r2gen").scores["micro-14"]["f1"]
        1.0
    """
    names = [conventions] if isinstance(conventions, str) else list(CONVENTIONS if conventions is None else conventions)
    chosen = dict.fromkeys(member for name in names for member in FAMILIES.get(name, (name,)))
    settings = {name: convention(name) for name in chosen}
    p, t = as_labels(preds, target, labeler)
    require_reports(p)
    normal = torch.zeros(1, NUM_CONDITIONS, dtype=torch.int64, device=p.device)
    normal[0, CONDITIONS.index("No Finding")] = POSITIVE
    scores = {}
    for name, setting in settings.items():
        scores[name] = {s: float(ce_f1(p, t, **setting, score=s)) for s in SCORES}
        scores[name]["normal"] = float(ce_f1(normal.expand_as(t), t, **setting))
    counts = condition_counts(confusion(p, t), "positive")
    per_condition = {s: average_score(counts, "none", s, "nan").tolist() for s in SCORES}
    support = (counts[0] + counts[2]).tolist()
    conditions = {
        name: {**{s: per_condition[s][i] for s in SCORES}, "support": support[i]} for i, name in enumerate(CONDITIONS)
    }
    return CETable(len(p), scores, conditions)
