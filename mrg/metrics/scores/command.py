"""`--scores`: computes the named scores one after the other, and writes one JSON and one table."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mrg
from mrg.errors import MrgError
from mrg.files import write_json
from mrg.log import log
from mrg.metrics import labelers
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import evaluate_systems
from mrg.metrics.imports import name_of
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import Labeler, Scorer
from mrg.metrics.predictions import Predictions
from mrg.metrics.scores.evaluation import format_scores, group_rows, labeled_rows
from mrg.metrics.scores.group import Group
from mrg.metrics.scores.kept import KeptLabels, KeptValues, source_digest, stamp
from mrg.metrics.scores.named import LABELED, make_groups


def score_all(
    predictions: Predictions,
    systems: Mapping[str, Sequence[str]],
    output: Path,
    options: argparse.Namespace,
    labeler: Labeler,
    scorers: Mapping[str, Scorer],
    train: Sequence[str] | None,
) -> str:
    """Compute the scores of `--scores`, and write the JSON.

    Values per report are kept next to the output, so that the same command continues where it was interrupted.

    Args:
        predictions: The file of reports.
        systems: Name -> N reports: the baselines, then those of the file.
        output: JSON file to write.
        options: Options of the command; `scores` is a list of names.
        labeler: Labeler of the command.
        scorers: Further scores, of `--scorer`.
        train: Training reports, for the best constants.

    Returns:
        The table.

    Raises:
        UserError: If a score cannot be computed; before any is.
        RunError: If a score has no value for any study.
    """
    groups = make_groups(options.scores, options, labeler, scorers, _beside(output, "judge"))
    kept = KeptValues(_beside(output, "values"))
    labeled = [name for name in options.scores if name in LABELED]
    trials = options.trials or 1000
    result: dict[str, Any] = {"predictions": str(options.predictions), "columns": predictions.columns}
    result |= {"no_reference": predictions.no_target, "no_prediction": predictions.no_preds, "mrg": mrg.__version__}
    result |= {"num_studies": len(predictions.ids), "trials": trials, "seed": options.seed}
    rows: dict[str, dict[str, Any]] = {}
    total = bool(labeled) + len(groups)
    try:
        if labeled:
            with _step(1, total, " and ".join(labeled), systems):
                own = KeptLabels(labeler, kept, _settings(labeler, options))
                result |= _labeled(systems, predictions.target, own, options, train)
                rows |= labeled_rows(result, labeled)
        for number, group in enumerate(groups, 1 + bool(labeled)):
            with _step(number, total, group.name, systems):
                rows |= group_rows(group, systems, predictions.target, kept, train, trials, options.seed)
    except MrgError:
        log.info(f"Finished values are in {kept.path}: the same command continues from there.")
        raise
    result |= {"scores": rows, "usage": {group.name: dict(group.usage) for group in groups if group.usage}}
    result["failures"] = [row for group in groups for row in _failures(group, predictions, systems)]
    write_json(output, result)
    return "\n".join([format_scores(rows, len(predictions.ids)), *_usage(groups)])


def _beside(output: Path, what: str) -> Path:
    return output.with_name(f"{output.name}.{what}.jsonl")


def _labeled(
    systems: Mapping[str, Sequence[str]],
    target: Sequence[str],
    labeler: Labeler,
    options: argparse.Namespace,
    train: Sequence[str] | None,
) -> dict[str, Any]:
    """CE and MCCS in every convention, as without `--scores`."""
    best = None if train is None else BestConstants.of(train, labeler, options.margin)
    *baselines, system = systems
    pairs = [(system, name) for name in baselines]
    return evaluate_systems(
        systems, target, labeler, options.margin, None, pairs, options.trials or 1000, options.seed, None, best,
        options.min_cases,
    )  # fmt: skip


def _settings(labeler: Labeler, options: argparse.Namespace) -> dict[str, Any]:
    """What the labels depend on; empty for a labeler of the user, whose code may change between two runs."""
    if options.chexbert is not None:
        files = [stamp(Path(path)) for path in (options.chexbert, options.tokenizer) if path is not None]
        return {"labeler": name_of(labeler), "mrg": mrg.__version__, "checkpoint": options.chexbert, "files": files}
    if type(labeler) is RulesLabeler:
        return {"labeler": name_of(labeler), "code": source_digest(Path(labelers.__file__).parent)}
    return {}


@contextlib.contextmanager
def _step(number: int, total: int, name: str, systems: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Log the start and the end of a score."""
    num_reports = sum(map(len, systems.values()))
    log.info(f"Score {number} of {total}: {name}, {num_reports:,} reports.")
    started = time.monotonic()
    yield
    log.info(f"Score {number} of {total}: {name} finished in {time.monotonic() - started:,.1f} s.")


def _failures(group: Group, predictions: Predictions, systems: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The reports without a score, with the reasons."""
    return [
        {"score": group.name, "system": system, "id": name, "reason": group.reasons[pair]}
        for system, preds in systems.items()
        for name, *texts in zip(predictions.ids, preds, predictions.target, strict=True)
        if (pair := (texts[0], texts[1])) in group.reasons
    ]


def _usage(groups: Sequence[Group]) -> list[str]:
    """A line per group with the numbers that it counted."""
    return [
        f"{group.name}: "
        + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in group.usage.items())
        + "."
        for group in groups
        if group.usage
    ]
