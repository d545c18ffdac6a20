"""Tables of CE and MCCS: every score with its convention and interval, next to baselines on the same references.

Intervals are percentile bootstrap intervals over studies; each report is labelled once (see `resampling.py`).
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.ce import average_score, ce_f1, condition_counts, confusion
from mrg.metrics.conditions import CONDITIONS, NUM_CONDITIONS, POSITIVE, THIRTEEN, stated
from mrg.metrics.conventions import CONVENTIONS, FAMILIES, SCORES, convention
from mrg.metrics.imports import name_of
from mrg.metrics.labels import Labeler, Reports, Scorer, as_labels, label_together, require_reports
from mrg.metrics.resampling import ReportSums, bootstrap, percentile_interval

CONSTANT_NORMAL = (
    "The heart is normal in size. The mediastinum is normal. The lungs are clear. No focal consolidation, pneumonia, "
    "edema, pleural effusion, or pneumothorax."
)
"""The constant normal report, a baseline: the same normal findings for every image."""

COLUMNS = ("MCCS", "CE-F1 micro-13+", "CE-F1 macro-13+", "CE-F1 micro-14")
NO_FINDING = "No reference contains a finding, so CE-F1 over 13 or 5 conditions is 0 for any report. Use other studies."


def most_frequent_report(reports: Sequence[str]) -> str:
    """The most frequent report; ties go to the first in alphabetical order, so that the order of a file has no effect.

    Raises:
        UserError: If there is no report.
    """
    if not reports:
        raise UserError("Expected argument `reports` to hold at least one report, but got none.")
    counts = Counter(reports)
    most = max(counts.values())
    return min(report for report, count in counts.items() if count == most)


def remark_on_frequency(reports: Sequence[str], row: str, what: str) -> str:
    """Note that no report occurs more than once, so that the most frequent one is arbitrary; empty otherwise.

    Args:
        reports: Reports from which `most_frequent_report` chose.
        row: Name of the baseline's row in the table.
        what: Name of the reports: "reference".
    """
    if len(reports) < 2 or len(set(reports)) < len(reports):
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
) -> dict[str, Any]:
    """Score several systems on the same references.

    Args:
        systems: Name -> N reports.
        target: N reference reports.
        labeler: Labeler, or any callable of its form; called once.
        margin: Margin of MCCS.
        formats: Name -> share of completions in the valid format, for systems that have a format.
        differences: Pairs (a, b) of names: a minus b, paired by study.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        scorers: Name -> further score per report, whose mean gets a column.

    Returns:
        Settings, support, `systems` and `differences`, JSON-serialisable.

    Raises:
        UserError: If a system does not have N reports, or N is 0.
    """
    for name, preds in systems.items():
        if len(preds) != len(target):
            raise UserError(f"Expected system {name!r} to have {len(target)} reports, but got {len(preds)}.")
    reference, *of_systems = label_together(labeler, target, *systems.values())
    require_reports(reference)
    labels = dict(zip(systems, of_systems, strict=True))
    sums = {name: ReportSums.of(p, labels[name], target, reference, margin, scorers) for name, p in systems.items()}
    corpus = {name: own.corpus() for name, own in sums.items()}
    samples = dict(zip(systems, bootstrap(list(sums.values()), num_resamples, seed), strict=True))
    return {
        "num_studies": len(target),
        "labeler": name_of(labeler),
        "margin": margin,
        "conventions": {name: {**s, "conditions": list(s["conditions"])} for name, s in CONVENTIONS.items()},
        "empty_references": float((reference[:, :13] == 0).all(1).double().mean()),
        "support": dict(zip(CONDITIONS, stated(reference).sum(0).tolist(), strict=True)),
        "systems": {
            name: {
                "scores": {score: _interval(value, samples[name][score]) for score, value in corpus[name].items()},
                "distinct": len(set(preds)) / len(preds),
                "format": (formats or {}).get(name),
                **_shares(labels[name], reference),
            }
            for name, preds in systems.items()
        },
        "differences": _differences(corpus, samples, differences),
    }


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


def _interval(value: float, samples: np.ndarray) -> dict[str, float]:
    low, high = percentile_interval(samples)
    return {"value": value, "low": low, "high": high}


def _shares(preds: Tensor, target: Tensor) -> dict[str, Any]:
    """Precision and recall in every convention, and the scores of each of the 13 conditions with 0/0 = 0."""
    rows = condition_scores(preds, target)
    return {
        "precision": {c: float(ce_f1(preds, target, **v, score="precision")) for c, v in CONVENTIONS.items()},
        "recall": {c: float(ce_f1(preds, target, **v, score="recall")) for c, v in CONVENTIONS.items()},
        "per_condition": {c: {k: 0.0 if v != v else v for k, v in rows[c].items()} for c in THIRTEEN},
    }


def condition_scores(preds: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    """Scores of each condition, with uncertain counted as positive.

    Args:
        preds: (N, 14) label classes.
        target: (N, 14) label classes.

    Returns:
        Condition -> `f1`, `precision` and `recall` (nan for 0/0), `support` and `predicted` (numbers of reports).
    """
    counts = condition_counts(confusion(preds, target), "positive")
    columns = {score: average_score(counts, "none", score, "nan").tolist() for score in SCORES}
    columns |= {"support": (counts[0] + counts[2]).tolist(), "predicted": (counts[0] + counts[1]).tolist()}
    return {name: {key: values[i] for key, values in columns.items()} for i, name in enumerate(CONDITIONS)}


@dataclasses.dataclass(frozen=True)
class CETable:
    """CE in many conventions, as fractions; `print` shows percent.

    Args:
        num_reports: N.
        scores: Convention -> `precision`, `recall`, `f1`, and `normal`: the F1 of a report whose only label is No
            Finding, on the same references.
        conditions: Condition -> `precision`, `recall`, `f1`, and `support`: the number of references with the
            condition. Uncertain counts as positive.
    """

    num_reports: int
    scores: dict[str, dict[str, float]]
    conditions: dict[str, dict[str, float]]

    def __str__(self) -> str:
        """The printed table, at most 100 columns wide."""
        lines = [
            f"CE of {self.num_reports:,} reports, in percent. A convention is named by its average and conditions:",
            "14, 13 (without No Finding) or 5; + counts uncertain as positive, otherwise it is negative; 0/0 = 0.",
            "normal: F1 of a constant normal report, a baseline.",
        ]
        rows = {
            name: [_percent(row[key]) for key in ("precision", "recall", "f1", "normal")]
            for name, row in self.scores.items()
        }
        return "\n".join([*lines, "", *_format_ce(["precision", "recall", "F1", "normal"], rows, self.conditions)])


def ce_table(
    preds: Reports, target: Reports, labeler: Labeler | None = None, conventions: Sequence[str] | str | None = None
) -> CETable:
    """Compute CE in many conventions.

    Args:
        preds: N generated reports: (N, 14) label classes, or strings with a `labeler`.
        target: N reference reports in either form.
        labeler: Labeler for strings.
        conventions: Name or names from `CONVENTIONS` and `FAMILIES`; all of `CONVENTIONS` by default.

    Raises:
        UserError: If a name is unknown, a value is not a label class, lengths differ, or there is no report.
        UserTypeError: If a report is neither a row of labels nor a string.

    Example:
        >>> target = torch.tensor([[0, 1, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0]])
        >>> ce_table(target, target, conventions="r2gen").scores["micro-14"]["f1"]
        1.0
    """
    names = [conventions] if isinstance(conventions, str) else list(CONVENTIONS if conventions is None else conventions)
    members = dict.fromkeys(member for name in names for member in FAMILIES.get(name, (name,)))
    settings = {name: convention(name) for name in members}
    p, t = as_labels(preds, target, labeler)
    require_reports(p)
    normal = torch.zeros(1, NUM_CONDITIONS, dtype=torch.int64, device=p.device)
    normal[0, CONDITIONS.index("No Finding")] = POSITIVE
    scores = {}
    for name, setting in settings.items():
        scores[name] = {score: float(ce_f1(p, t, **setting, score=score)) for score in SCORES}
        scores[name]["normal"] = float(ce_f1(normal.expand_as(t), t, **setting))
    rows = condition_scores(p, t)
    return CETable(len(p), scores, {c: {k: row[k] for k in (*SCORES, "support")} for c, row in rows.items()})


def format_conventions(results: Mapping[str, Any], system: str) -> str:
    """CE of one system from `evaluate_systems` in every convention and for each condition, in percent."""
    row, others = results["systems"][system], [name for name in results["systems"] if name != system]
    rows = {
        name: [
            _percent(row["precision"][name]),
            _percent(row["recall"][name]),
            format_span(row["scores"][f"CE-F1 {name}"]),
            *(_percent(results["systems"][other]["scores"][f"CE-F1 {name}"]["value"]) for other in others),
        ]
        for name in CONVENTIONS
    }
    head = ["precision", "recall", "F1 [95 % interval]", *others]
    lines = [f"CE of {system} in every convention, in percent, followed by the F1 of the other rows."]
    return "\n".join([*lines, *_format_ce(head, rows, row["per_condition"])])


def _format_ce(
    head: list[str], rows: Mapping[str, list[str]], conditions: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Lines of the CE table: a row for each convention with the papers that report it, then one for each condition."""
    users = {name: ", ".join(family for family, members in FAMILIES.items() if name in members) for name in rows}
    lines = _columns([["convention", *head], *([name, *row] for name, row in rows.items())])
    lines = [f"{line}   {by}".rstrip() for line, by in zip(lines, ["reported by", *users.values()], strict=True)]
    counts = [key for key in ("support", "predicted") if key in next(iter(conditions.values()))]
    table = [["condition (+)", "precision", "recall", "F1", *counts]]
    for name, row in conditions.items():
        support, predicted = row["support"], row.get("predicted", 1)
        shares = (("precision", predicted), ("recall", support), ("f1", support + predicted))
        cells = [_percent(row[score]) if defined and row[score] == row[score] else "-" for score, defined in shares]
        table.append([name, *cells, *(f"{row[key]:,.0f}" for key in counts)])
    return [*lines, "", *_columns(table)]


def _columns(rows: Sequence[Sequence[str]], gap: int = 2) -> list[str]:
    """Rows of cells with the first column aligned left and the others aligned right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        row[0].ljust(first) + "".join(cell.rjust(gap + width) for cell, width in zip(row[1:], widths, strict=True))
        for row in rows
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def format_span(score: Mapping[str, float], scale: float = 100, digits: int = 1, sign: str = "") -> str:
    """A score with its interval, `value [low, high]`, in percent by default."""
    value, low, high = (f"{scale * score[key]:{sign}.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def is_share(score: str) -> bool:
    """Whether a score of `evaluate_systems` is a fraction, shown in percent; the range of other scorers is unknown."""
    return score == "MCCS" or score.startswith("CE-F1 ")


def format_table(results: Mapping[str, Any]) -> str:
    """The printed table of `evaluate_systems`, in percent and at most 112 columns wide."""
    systems, support = results["systems"], results["support"]
    lines = [
        f"{results['num_studies']} studies, labeler {results['labeler']}, MCCS margin {results['margin']:g}; "
        "95 % bootstrap intervals over studies.",
        "In percent. CE-F1 over 13 conditions (without No Finding) or 14; +: uncertain counts as positive; 0/0 = 0.",
        *textwrap.wrap(
            f"Support (positive or uncertain), {sum(support[c] for c in THIRTEEN)} findings: "
            + ", ".join(f"{c} {support[c]}" for c in CONDITIONS)
            + f". References that mention none of the 13 conditions: {_percent(results['empty_references'])} %.",
            width=112,
        ),
        *([] if any(support[c] for c in THIRTEEN) else [NO_FINDING]),
        "",
    ]
    extras = [score for score in next(iter(systems.values()))["scores"] if not is_share(score)]
    table = [["", *(c.removeprefix("CE-F1 ") for c in (*COLUMNS, *extras)), "distinct", "format"]]
    for name, row in systems.items():
        spans = [format_span(row["scores"][c]) for c in COLUMNS] + [format_span(row["scores"][c], 1, 3) for c in extras]
        spans = [span.replace(", ", ",") for span in spans]  # to fit into the width
        rate = "-" if row["format"] is None else f"{100 * row['format']:.0f} %"
        table.append([name, *spans, f"{100 * row['distinct']:.0f} %", rate])
    rows = _columns(table)
    lines += rows if len(rows[0]) <= 112 else _columns(table, gap=1)
    for gap in results["differences"]:
        if gap["score"] in COLUMNS[:2]:
            lines.append(f"{gap['a']} - {gap['b']}, {gap['score']}: {format_span(gap, sign='+')}")
    return "\n".join(lines)


def format_nlg(scores: Mapping[str, Any]) -> str:
    """The printed NLG scores of all systems: percent, and CIDEr from 0 to 10."""
    systems = {name: row for name, row in scores.items() if name != "normalization"}
    names = list(next(iter(systems.values())))
    table = [["", *names]]
    for system, row in systems.items():
        table.append([system, *(f"{row[name]:.3f}" if name == "CIDEr" else _percent(row[name]) for name in names)])
    lines = [
        f"NLG with normalization {scores['normalization']}, in percent (CIDEr: 0 to 10): similarity of wording, not of "
        "findings; not clinical evidence.",
    ]
    return "\n".join([*lines, *_columns(table)])
