"""Correlation of scores with the errors that expert readers counted: evidence for the choice of a metric or a reward.

    python -m mrg.metrics.readers pairs.csv --errors errors.csv

Two layouts are read. In that of ReXVal (Yu et al., 2023), a row of the pairs holds the reference `gt_report` and one
report per kind of candidate, and the errors are a second file with one row per study, candidate, reader and category.
In the other one, each row is a pair of `reference` and `candidate` with its number of errors. No data come with mrg.

Kendall's tau-b compares all pairs of reports by score and by errors: 1 if fewer errors always score better, which is
lower for a scorer whose attribute `higher_is_better` is False. Intervals resample studies, because the reports of one
study depend on each other.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrg.errors import UserError
from mrg.files import write_json
from mrg.metrics.arguments import make_labeler, make_scorers, one_line_errors
from mrg.metrics.ce import CEF1
from mrg.metrics.labels import Labeler, Scorer, label_together
from mrg.metrics.mccs import mccs
from mrg.metrics.nlg import bleu, rouge_l
from mrg.metrics.predictions import some
from mrg.metrics.resampling import percentile_interval
from mrg.metrics.rows import read_rows
from mrg.metrics.scorer import is_upward

REFERENCES, CANDIDATES = ("gt_report", "reference", "target", "ground_truth"), ("candidate", "prediction", "generated")
STUDIES = ("study_number", "study_id", "id", "study")


class ReadPair(NamedTuple):
    """A generated report, its reference, and the errors that readers counted, as a mean over readers."""

    study: str
    candidate: str
    reference: str
    errors: float


def read_pairs(pairs: Path, errors: Path | None, column: str, significant: bool = False) -> list[ReadPair]:
    """Read the reports and their errors.

    Args:
        pairs: File with the reports.
        errors: File with one row per study, candidate, reader and category; None if the pairs hold the errors.
        column: Column of the number of errors in the pairs, without `errors`.
        significant: Count clinically significant errors only; needs `errors`.

    Raises:
        UserError: If a column is missing, a number is none, or a report has no errors counted.
    """
    rows = read_rows(pairs)
    reference = _named(pairs, rows[0], REFERENCES, "reference")
    if errors is None:
        if significant:
            raise UserError("--significant needs --errors, a file that says which errors are clinically significant.")
        study = next((name for name in STUDIES if name in rows[0]), None)
        report = _named(pairs, rows[0], CANDIDATES, "generated report")
        return [
            ReadPair(
                str(row[study]) if study else str(i), str(row[report]), str(row[reference]),
                _number(pairs, i, row, column),
            )
            for i, row in enumerate(rows)
        ]  # fmt: skip
    counts = _counts(errors, significant)
    kinds = list(dict.fromkeys(kind for _, kind in counts))
    missing = [kind for kind in kinds if kind not in rows[0]]
    if missing:
        raise UserError(f"{errors} counts errors of {some(missing)}, but {pairs} has no such column of reports.")
    names = [_study(row, i) for i, row in enumerate(rows)]
    if not {name for name, _ in counts} <= set(names):
        names = [str(i) for i in range(len(rows))]  # ReXVal numbers the studies by their rows
    found = [
        ReadPair(name, str(row[kind]), str(row[reference]), counts[name, kind])
        for name, row in zip(names, rows, strict=True)
        for kind in kinds
        if (name, kind) in counts
    ]
    if len(found) < len(counts):
        raise UserError(f"{errors} counts errors of {len(counts)} reports, but {pairs} has only {len(found)} of them.")
    return found


def _counts(path: Path, significant: bool) -> dict[tuple[str, str], float]:
    """Study and candidate -> errors of all categories, as a mean over readers."""
    rows = read_rows(path)
    for name in ("candidate_type", "rater_index", "num_errors", *(["clinically_significant"] if significant else [])):
        _named(path, rows[0], (name,), "errors")
    totals: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for i, row in enumerate(rows):
        readers = totals[_study(row, i), str(row["candidate_type"])]
        counts = not significant or str(row["clinically_significant"]).lower() in ("true", "1", "1.0", "yes")
        number = _number(path, i, row, "num_errors")
        reader = str(row["rater_index"])
        readers[reader] = readers.get(reader, 0.0) + (number if counts else 0.0)
    return {key: sum(readers.values()) / len(readers) for key, readers in totals.items()}


def _study(row: Mapping[str, Any], index: int) -> str:
    return next((str(row[name]) for name in STUDIES if name in row), str(index))


def _named(path: Path, row: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    for name in names:
        if name in row:
            return name
    raise UserError(f"Expected {path} to have a column {' or '.join(names)} ({what}), but it has {some(list(row))}.")


def _number(path: Path, index: int, row: Mapping[str, Any], column: str) -> float:
    try:
        value = float(row[column])
    except KeyError:
        raise UserError(f"Expected {path} to have a column {column} (errors): name it with --column.") from None
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{path}, row {index + 1}: expected {column} to be a number of errors, got {row[column]!r}.")
    return value


def kendall(scores: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Kendall's tau-b between scores and the absence of errors, for several weights of the reports.

    Args:
        scores: (N,) scores, higher is better.
        errors: (N,) numbers of errors.
        weights: (T, N) how often each report counts.

    Returns:
        (T,) values in [-1, 1]; nan if all scores or all errors are equal.
    """
    x, y = np.sign(scores[:, None] - scores), np.sign(errors - errors[:, None])

    def pairs(table: np.ndarray) -> np.ndarray:
        sums: np.ndarray = ((weights @ table) * weights).sum(1)
        return sums

    norm = np.sqrt(pairs(x * x) * pairs(y * y))
    result: np.ndarray = np.divide(pairs(x * y), norm, out=np.full(len(weights), np.nan), where=norm > 0)
    return result


def reader_scores(
    pairs: Sequence[ReadPair], labeler: Labeler, margin: float = 0.5, scorers: Mapping[str, Scorer] | None = None
) -> dict[str, np.ndarray]:
    """Name -> (N,) scores of each report: MCCS, CE-F1 per report, BLEU-4, ROUGE-L, and further ones."""
    preds, target = [pair.candidate for pair in pairs], [pair.reference for pair in pairs]
    stated, true = label_together(labeler, preds, target)
    scores: dict[str, Any] = {
        "MCCS": mccs(stated, true, margin=margin, reduction="none"),
        "CE-F1 example-13+": CEF1(average="example", zero_division=1).scores(stated, true),
        "BLEU-4": bleu(preds, target),
        "ROUGE-L": rouge_l(preds, target),
    }
    scores |= {name: scorer(preds, target) for name, scorer in (scorers or {}).items()}
    return {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}


def correlations(
    pairs: Sequence[ReadPair],
    scores: Mapping[str, np.ndarray],
    num_trials: int = 1000,
    seed: int = 0,
    downward: Collection[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Score -> `value`, Kendall's tau-b, with its 95 % bootstrap interval over studies `low` and `high`; best first.

    Args:
        pairs: N reports with their errors.
        scores: Name -> (N,) scores.
        num_trials: Number of bootstrap samples.
        seed: Seed of the samples.
        downward: Names of the scores of which lower is better; none by default.

    Raises:
        UserError: If there are fewer than two studies.
    """
    _, study = np.unique([pair.study for pair in pairs], return_inverse=True)
    num_studies = int(study.max()) + 1
    if num_studies < 2:
        raise UserError(f"Expected reports of at least 2 studies for a correlation, but got {num_studies}.")
    drawn = np.random.default_rng(seed).multinomial(num_studies, np.full(num_studies, 1 / num_studies), num_trials)
    weights = np.concatenate([np.ones((1, len(pairs))), drawn[:, study]])
    errors = np.array([pair.errors for pair in pairs])
    result = {}
    for name, values in scores.items():
        tau = kendall(-values if name in (downward or ()) else values, errors, weights)
        low, high = percentile_interval(tau[1:][~np.isnan(tau[1:])]) if not np.isnan(tau[1:]).all() else (tau[0],) * 2
        result[name] = {"value": float(tau[0]), "low": float(low), "high": float(high)}
    return dict(sorted(result.items(), key=lambda row: -np.nan_to_num(row[1]["value"], nan=-2)))


def parser() -> argparse.ArgumentParser:
    """Create the parser of the command."""
    result = argparse.ArgumentParser("python -m mrg.metrics.readers", description=(__doc__ or "").partition("\n")[0])
    result.add_argument("pairs", type=Path, help="CSV, JSON or JSON lines with the reports")
    result.add_argument("--errors", type=Path, help="errors per study, candidate_type, rater_index (ReXVal's layout)")
    result.add_argument("--column", default="num_errors", help="column of the errors in the pairs, without --errors")
    result.add_argument("--significant", action="store_true", help="count clinically significant errors only")
    result.add_argument(
        "--scorer", action="append", default=[], metavar="PATH", help="further score: PACKAGE.MODULE:FUNCTION"
    )
    result.add_argument("--labeler", help="class path of a labeler (default: rules)")
    result.add_argument("--chexbert", type=Path, help="CheXbert checkpoint that labels")
    result.add_argument("--tokenizer", help="tokenizer of --chexbert")
    result.add_argument("--margin", type=float, default=0.5, help="margin of MCCS")
    result.add_argument("--output", type=Path, help="JSON file to write")
    return result


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; an error that the user can fix prints one line and exits with 2."""
    options = parser().parse_args(args)
    with one_line_errors("mrg.metrics.readers"):
        pairs = read_pairs(options.pairs, options.errors, options.column, options.significant)
        scorers = make_scorers(options)
        downward = [name for name, scorer in scorers.items() if not is_upward(scorer)]
        scores = reader_scores(pairs, make_labeler(options), options.margin, scorers)
        result = correlations(pairs, scores, downward=downward)
        if options.output:
            settings = {"num_reports": len(pairs), "margin": options.margin, "lower_is_better": downward}
            write_json(options.output, {**settings, "correlations": result})
        studies = len({pair.study for pair in pairs})
        print(f"{len(pairs)} reports of {studies} studies. Kendall's tau-b, 95 % bootstrap intervals over studies.")
        for name, row in result.items():
            shown = f"{name} (lower is better)" if name in downward else name
            print(f"{shown:<24}{row['value']:>7.3f}  [{row['low']:+.3f}, {row['high']:+.3f}]")


if __name__ == "__main__":
    main()
