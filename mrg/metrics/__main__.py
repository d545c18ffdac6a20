"""`python -m mrg.metrics predictions.jsonl [--compare other.jsonl]`: score a file of reports, or compare two."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mrg.errors import ExtensionError, MrgError, UserError, one_line, where_raised
from mrg.files import write_json
from mrg.metrics.compare import compare_systems, format_comparison
from mrg.metrics.constants import BEST, BestConstants
from mrg.metrics.evaluation import (
    CONSTANT_NORMAL,
    evaluate_systems,
    format_conventions,
    format_nlg,
    format_table,
    most_frequent_report,
    remark_on_frequency,
)
from mrg.metrics.labelers.chexbert import CheXbertLabeler
from mrg.metrics.labelers.named import load_labeler
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import Labeler, Scorer
from mrg.metrics.nlg import NORMALIZATIONS, nlg_scores
from mrg.metrics.predictions import (
    ID_COLUMNS,
    PREDS_COLUMNS,
    TARGET_COLUMNS,
    Predictions,
    align,
    column_names,
    read_predictions,
    read_reports,
    some,
)
from mrg.metrics.remarks import BASELINES
from mrg.metrics.resampling import MIN_CASES
from mrg.metrics.scorer import ReportScore, load_scorer

DESCRIPTION = """Score generated reports against references: MCCS and CE-F1 in every convention in use, with 95 %
intervals, next to baselines: the constant normal report, the most frequent reference and, with --train, the best
constant report of each score."""
EPILOG = """The files are JSON lines (.jsonl, as written by `python -m mrg test`), JSON (.json: a list of studies, or
ReXrank's object of studies by id) or tables with a header line (.csv, .tsv). Reports are labelled by rules unless
--labeler or --chexbert is given; see docs/labelers.md."""


def parser() -> argparse.ArgumentParser:
    """Parser of the command's arguments."""
    result = argparse.ArgumentParser("python -m mrg.metrics", description=DESCRIPTION, epilog=EPILOG)
    add = result.add_argument
    add("predictions", type=Path, help="file of generated and reference reports")
    add("--compare", type=Path, metavar="FILE", help="second file, for paired differences")
    columns = (
        ("id", "study ids", ID_COLUMNS),
        ("preds", "generated reports", PREDS_COLUMNS),
        ("target", "reference reports", TARGET_COLUMNS),
    )
    for name, what, known in columns:
        text = f"column of {what} (default: the first of {', '.join(known)}); may be repeated for --compare: each file"
        add(f"--{name}", metavar="COLUMN", action="append", default=[], help=f"{text} uses the first one that it has")
    add("--labeler", metavar="MODULE.CLASS", help="labeler: a class or an object of yours, see docs/extending.md "
        "(default: rules)")  # fmt: skip
    add("--chexbert", metavar="CHECKPOINT", help="CheXbert checkpoint to label with: a file, a folder or a hub id")
    add("--tokenizer", metavar="FOLDER", help="tokenizer of CheXbert (default: bert-base-uncased)")
    add("--train", type=Path, metavar="FILE", help="training reports, for the best constant report of each "
        "score: a file like the others, or an annotation.json")  # fmt: skip
    add("--margin", type=float, default=0.5, help="margin of MCCS (default: %(default)s)")
    add("--min_cases", type=int, default=MIN_CASES, help="fewest references with a condition that counts in "
        "informedness (default: %(default)s)")  # fmt: skip
    add("--nlg", action="store_true", help="add BLEU, METEOR, ROUGE-L and CIDEr: pip install 'mrg[nlg]'")
    add("--normalization", choices=NORMALIZATIONS, default="none", help="text normalisation before --nlg (default: "
        "%(default)s)")  # fmt: skip
    add("--scorer", action="append", default=[], metavar="PACKAGE.MODULE:FUNCTION", help="further score per report, "
        "see docs/scorers.md; may be repeated")  # fmt: skip
    add("--trials", type=int, help="number of bootstrap samples (default: 1000; with --compare 10000, and as many "
        "randomisation trials)")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the trials (default: %(default)s)")
    add("--changed", type=int, default=10, help="number of changed studies to print (default: %(default)s)")
    add("--output", type=Path, metavar="FILE", help="JSON file to write (default: next to the predictions)")
    return result


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; an error that the user can mend prints one line and exits with 2."""
    options = parser().parse_args(args)
    try:
        run(options)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"mrg.metrics: {line}", file=sys.stderr)
        raise SystemExit(2) from None


def run(options: argparse.Namespace) -> None:
    """Score or compare, print, and write the JSON."""
    _check(options)
    first, *others = _read(options)
    if options.compare is None:
        _score(first, _output(options, "scores.json"), options)
        return
    names = _names(options.predictions, options.compare)
    second = others[0]
    if not (first.has_ids and second.has_ids):
        missing = options.compare if first.has_ids else options.predictions
        raise UserError(f"{missing} has no column of ids ({' or '.join(ID_COLUMNS)}): set it with --id.")
    second = align(first, second, names)
    other = options.compare.name
    if other == options.predictions.name:  # of two runs: the folder tells them apart
        other = f"{options.compare.resolve().parent.name}.{other}"
    output = _output(options, f"vs.{other}.json")
    result = compare_systems(
        first.preds, second.preds, first.target, _labeler(options), first.ids, options.margin,
        options.trials or 10_000, options.seed, _scorers(options),
    )  # fmt: skip
    columns: dict[str, Any] = {"a_columns": first.columns, "b_columns": second.columns}
    columns |= {"no_reference": first.no_target, "a_no_prediction": first.no_preds, "b_no_prediction": second.no_preds}
    write_json(output, {"a": str(options.predictions), "b": str(options.compare), **columns, **result})
    for name, predictions in zip(names, (first, second), strict=True):
        print("\n".join([f"{name}: {_read_columns(predictions)}", *_missing(predictions)]))
    print(f"{format_comparison(result, names, options.changed)}\n\nAll results: {output}")


def _score(predictions: Predictions, output: Path, options: argparse.Namespace) -> None:
    name = options.predictions.stem
    if name in (*BASELINES, BEST):
        name += " (file)"
    systems = {
        "constant normal": [CONSTANT_NORMAL] * len(predictions.ids),
        "most frequent reference": [most_frequent_report(predictions.target)] * len(predictions.ids),
        name: predictions.preds,
    }
    differences = [(name, "constant normal"), (name, "most frequent reference")]
    labeler = _labeler(options)
    train = read_reports(options.train, next(iter(options.target), None)) if options.train is not None else []
    best = BestConstants.of(train, labeler, options.margin)
    result = evaluate_systems(
        systems, predictions.target, labeler, options.margin, None, differences, options.trials or 1000,
        options.seed, _scorers(options), best, options.min_cases,
    )  # fmt: skip
    left_out = {"no_reference": predictions.no_target, "no_prediction": predictions.no_preds}
    result = {"predictions": str(options.predictions), "columns": predictions.columns, **left_out, **result}
    write_json(output, result)
    print(_notes(predictions))
    if best is None:
        print("Without training reports (--train FILE), the best constant report of each score is not known.")
    print(f"{format_table(result)}\n\n{format_conventions(result, name)}", flush=True)
    if options.nlg:  # last: the other results stay if Java or the extra is missing
        texts, how = predictions.target, options.normalization
        scores = {system: nlg_scores(preds, texts, how).corpus for system, preds in systems.items()}
        result["nlg"] = {"normalization": how, **scores}
        write_json(output, result)
        print(f"\n{format_nlg(result['nlg'])}")
    print(f"\nAll results: {output}")


def _read_columns(predictions: Predictions) -> str:
    columns = predictions.columns
    line = f"Reports: {columns['preds']!r}; references: {columns['target']!r}; ids: {columns['id']!r}."
    if columns["target"] == "section_findings":
        line += " ReXrank scores findings; --target report would score them against whole reports."
    return line


def _missing(predictions: Predictions) -> list[str]:
    """Notes on missing references, which are excluded, and missing reports, which are scored as empty."""
    lines, scored = [], len(predictions.ids)
    if names := predictions.no_target:
        lines.append(f"Excluded: {len(names):,} of {scored + len(names):,} studies have no reference: {some(names)}.")
    if empty := sum(not text.strip() for text in predictions.preds):
        words = (
            f", of which {len(names):,} hold a word such as nan: {some(names)}"
            if (names := predictions.no_preds)
            else ""
        )
        lines.append(f"{empty:,} of {scored:,} reports are empty and scored as such{words}.")
    return lines


def _notes(predictions: Predictions) -> str:
    """Columns that were read, and notes on the data for readers of the table."""
    lines = [_read_columns(predictions), *_missing(predictions)]
    if note := remark_on_frequency(predictions.target, "most frequent reference", "reference"):
        lines.append(note)
    if len(predictions.ids) < 100:
        lines.append(f"{len(predictions.ids)} studies are few: the intervals are wide.")
    return "\n".join(lines)


def _check(options: argparse.Namespace) -> None:
    """Check the options before any work."""
    for name, least in (("trials", 1), ("seed", 0), ("changed", 0), ("min_cases", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"Expected --{name} to be at least {least}, but got {value}.")
    if options.compare is not None and options.nlg:
        raise UserError("--nlg scores one file: corpus BLEU and CIDEr have no paired difference. Leave out --compare.")
    if options.compare is not None and options.train is not None:
        raise UserError("--train is for scoring one file. Leave out --compare.")
    if options.labeler is not None and options.chexbert is not None:
        raise UserError("--labeler and --chexbert are mutually exclusive.")
    if options.tokenizer is not None and options.chexbert is None:
        raise UserError("--tokenizer requires --chexbert.")


def _output(options: argparse.Namespace, ending: str) -> Path:
    """JSON file to write, after a check that it can be written."""
    output: Path = options.output or options.predictions.with_name(f"{options.predictions.name}.{ending}")
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise UserError(f"{output} cannot be written: set --output to a file in an existing folder.")
    inputs = [path.resolve() for path in (options.predictions, options.compare) if path is not None]
    if output.resolve() in inputs:
        raise UserError(f"--output {output} is a file of predictions: choose another file.")
    return output


def _read(options: argparse.Namespace) -> list[Predictions]:
    """Read the file, and the one to compare with."""
    paths = [options.predictions, *([] if options.compare is None else [options.compare])]
    given = [options.id, options.preds, options.target]
    if not any(given):
        return [read_predictions(path) for path in paths]
    held = [column_names(path) for path in paths]
    return [
        read_predictions(path, *(_column(names, own, held) for names in given))
        for path, own in zip(paths, held, strict=True)
    ]


def _column(given: Sequence[str], own: Collection[str], held: Sequence[Collection[str]]) -> str | None:
    """The first given column that a file has; None, for the default ones, if only the other file has them."""
    for name in given:
        if not any(name in columns for columns in held):
            return name  # misspelt: the reader lists the columns of the file
    return next((name for name in given if name in own), None)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Names of two files: those of the files if they differ, otherwise their paths."""
    if first.name != second.name:
        return first.name, second.name
    return str(first), str(second)


def _labeler(options: argparse.Namespace) -> Labeler:
    if options.labeler is not None:
        return load_labeler(options.labeler)
    if options.chexbert is None:
        return RulesLabeler()
    tokenizer = {} if options.tokenizer is None else {"tokenizer": options.tokenizer}
    return CheXbertLabeler(options.chexbert, **tokenizer)


def _scorers(options: argparse.Namespace) -> dict[str, Scorer]:
    return {spec: _scorer(spec) for spec in options.scorer}


def _scorer(spec: str) -> Scorer:
    metric = ReportScore(load_scorer(spec))

    def score(preds: Sequence[str], target: Sequence[str]) -> Any:
        try:
            return metric.scores(preds, target)
        except MrgError:
            raise
        except Exception as error:
            raise ExtensionError(f"The scorer {spec} failed: {where_raised(error)}") from error

    return score


if __name__ == "__main__":
    main()
