"""`python -m mrg.metrics predictions.jsonl [...]`: score a file of reports, compare two, or rank several."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrg.errors import UserError, counted
from mrg.files import write_json
from mrg.metrics.arguments import (
    ReportingLabeler,
    check,
    make_labeler,
    make_scorers,
    one_line_errors,
    output_file,
    parser,
)
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
from mrg.metrics.labels import Labeler
from mrg.metrics.leaderboard import format_leaderboard, leaderboard
from mrg.metrics.leaderboard_page import write_page
from mrg.metrics.nlg import nlg_scores
from mrg.metrics.predictions import (
    ID_COLUMNS,
    Predictions,
    align,
    column_names,
    read_predictions,
    read_reports,
    some,
)
from mrg.metrics.remarks import BASELINES
from mrg.metrics.scores.command import score_all
from mrg.metrics.texts import join, read_texts


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; an error that the user can fix prints one line and exits with 2."""
    options = parser().parse_args(args)
    options.systems, options.predictions = options.predictions, options.predictions[0]
    with one_line_errors("mrg.metrics"):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Score, compare or rank, print, and write the JSON."""
    check(options)
    if len(options.systems) > 1 or options.nearest_image is not None:
        _rank(options)
    elif options.compare is not None:
        _compare(options)
    else:
        _score(_read([options.predictions], options)[0], output_file(options, "scores.json"), options)


def _compare(options: argparse.Namespace) -> None:
    if options.compare.resolve() == options.predictions.resolve():  # in which --preds would name one column for both
        raise UserError(
            f"Expected --compare to be another file than {options.predictions}; to compare two of its columns, "
            "write each to a file of its own."
        )
    first, second = _read([options.predictions, options.compare], options)
    names = _names(options.predictions, options.compare)
    if not (first.has_ids and second.has_ids):
        missing = options.compare if first.has_ids else options.predictions
        raise UserError(f"{missing} has no column of ids ({' or '.join(ID_COLUMNS)}): set it with --id.")
    second = align(first, second, names)
    other = options.compare.name
    if other == options.predictions.name:  # of two runs: the folder tells them apart
        other = f"{options.compare.resolve().parent.name}.{other}"
    output = output_file(options, f"vs.{other}.json")
    result = compare_systems(
        first.preds, second.preds, first.target, make_labeler(options), first.ids, options.margin,
        options.trials or 10_000, options.seed, make_scorers(options), options.min_cases,
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
    labeler = make_labeler(options)
    if options.scores is not None:
        train = None if options.train is None else read_reports(options.train, next(iter(options.target), None))
        plain = labeler.labeler if isinstance(labeler, ReportingLabeler) else labeler  # has notes of its own
        table = score_all(predictions, systems, output, options, plain, make_scorers(options), train)
        print(f"{_notes(predictions)}\n{table}\n\nAll results: {output}")
        return
    differences = [(name, "constant normal"), (name, "most frequent reference")]
    best = _best(labeler, options)
    result = evaluate_systems(
        systems, predictions.target, labeler, options.margin, None, differences, options.trials or 1000,
        options.seed, make_scorers(options), best, options.min_cases,
    )  # fmt: skip
    left_out = {"no_reference": predictions.no_target, "no_prediction": predictions.no_preds}
    result = {"predictions": str(options.predictions), "columns": predictions.columns, **left_out, **result}
    write_json(output, result)
    print(_notes(predictions))
    if best is None:
        print("Without training reports (--train FILE), the best constant report of each score is not known.")
    print(f"{format_table(result)}\n\n{format_conventions(result, name)}", flush=True)
    _finish(result, systems, predictions.target, output, options)


def _rank(options: argparse.Namespace) -> None:
    output = output_file(options, "leaderboard.json")
    named = dict(zip(_system_names(options.systems), options.systems, strict=True))
    if options.nearest_image is not None:
        named["nearest image"] = options.nearest_image
    pairs = dict(zip(named, _read(list(named.values()), options), strict=True))
    first_name, first = next(iter(pairs.items()))
    if not options.by_row:
        if len(pairs) > 1 and (without := [named[name] for name, pair in pairs.items() if not pair.has_ids]):
            raise UserError(f"{without[0]} has no column of ids ({' or '.join(ID_COLUMNS)}): set it with --id.")
        pairs = {name: align(first, pair, (first_name, name)) for name, pair in pairs.items()}
    labeler = make_labeler(options)
    systems = {name: pair.preds for name, pair in pairs.items()}
    result = leaderboard(
        systems, first.target, labeler, options.margin, options.trials or 1000, options.seed, make_scorers(options),
        options.rank_by, _best(labeler, options), options.min_cases,
    )  # fmt: skip
    left_out = {"no_reference": first.no_target, "no_prediction": {name: pair.no_preds for name, pair in pairs.items()}}
    result = {"files": {name: str(path) for name, path in named.items()}, **left_out, **result}
    write_json(output, result)
    for name, pair in pairs.items():
        print("\n".join([f"{name}: {_read_columns(pair)}", *_missing(pair)]))
    print(f"\n{format_leaderboard(result)}", flush=True)
    if options.page is not None:
        write_page(result, options.page)
        print(f"\nPage: {options.page}")
    _finish(result, systems, first.target, output, options)


def _finish(
    result: dict[str, Any], systems: Mapping[str, Sequence[str]], target: Sequence[str], output: Path,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """Add NLG scores; they come last, so that the other results exist if Java or the extra is missing."""
    if options.nlg:
        how = options.normalization
        scores = {system: nlg_scores(preds, target, how).corpus for system, preds in systems.items()}
        result["nlg"] = {"normalization": how, **scores}
        write_json(output, result)
        print(f"\n{format_nlg(result['nlg'])}")
    print(f"\nAll results: {output}")


def _best(labeler: Labeler, options: argparse.Namespace) -> BestConstants | None:
    """The best constants on the reports of `--train`."""
    if options.train is None:
        return None
    return BestConstants.of(read_reports(options.train, next(iter(options.target), None)), labeler, options.margin)


def _read_columns(predictions: Predictions) -> str:
    columns = predictions.columns
    line = f"Reports: {columns['preds']!r}; references: {columns['target']!r}; ids: {columns['id']!r}."
    if columns["target"] == "section_findings":
        line += " ReXrank scores findings; --target report would score them against whole reports."
    return line


def _missing(predictions: Predictions) -> list[str]:
    """Notes on missing references, which are excluded, missing reports, which are scored as empty, and tags."""
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
    if tagged := sum("<think>" in text or "<report>" in text for text in predictions.preds):
        lines.append(
            f"{tagged:,} of {scored:,} reports have <think> or <report> tags and are scored with all that is in them: "
            "store the text of the report section instead (mrg.metrics.parse_completion)."
        )
    return lines


def _notes(predictions: Predictions) -> str:
    """Columns that were read, and notes on the data for readers of the table."""
    lines = [_read_columns(predictions), *_missing(predictions)]
    if note := remark_on_frequency(predictions.target, "most frequent reference", "reference"):
        lines.append(note)
    if len(predictions.ids) < 100:
        lines.append(f"{counted(len(predictions.ids), 'study is', 'studies are')} few: the intervals are wide.")
    return "\n".join(lines)


def _read(paths: Sequence[Path], options: argparse.Namespace) -> list[Predictions]:
    """Read files of predictions, and join each with the references if these are in a separate file."""
    given = [options.id, options.preds, options.target]
    if options.references is not None:
        held = [column_names(path) if any(given) else [] for path in (*paths, options.references)]
        target = read_texts(options.references, "target", *(_column(given[i], held[-1], held) for i in (0, 2)))
        preds = (
            read_texts(path, "preds", *(_column(given[i], own, held) for i in (0, 1)))
            for path, own in zip(paths, held[:-1], strict=True)
        )
        return [join(texts, target, options.by_row) for texts in preds]
    if not any(given):
        return [read_predictions(path) for path in paths]
    held = [column_names(path) for path in paths]
    return [
        read_predictions(path, *(_column(names, own, held) for names in given))
        for path, own in zip(paths, held, strict=True)
    ]


def _column(given: Sequence[str], own: Collection[str], held: Sequence[Collection[str]]) -> str | None:
    """The first given column that a file has; None, for the default ones, if only other files have them."""
    for name in given:
        if not any(name in columns for columns in held):
            return name  # misspelt: the reader lists the columns of the file
    return next((name for name in given if name in own), None)


def _system_names(paths: Sequence[Path]) -> list[str]:
    """Names of the files without their suffix, preceded by as many folders as are needed to distinguish them."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join((*path.parts[-depth:-1], path.stem)) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"Expected different files, but one is given twice: {', '.join(map(str, paths))}.")


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Names of two files: those of the files if they differ, otherwise their paths."""
    if first.name != second.name:
        return first.name, second.name
    return str(first), str(second)


if __name__ == "__main__":
    main()
