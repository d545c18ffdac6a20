"""Score a file of reports, compare two, or rank several: `python -m mrg.metrics predictions.jsonl [...]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mrg.cli import one_line
from mrg.files import write_json
from mrg.metrics.compare import compare_systems, format_comparison
from mrg.metrics.labelers.chexbert import CheXbertLabeler
from mrg.metrics.labelers.named import load_labeler
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import Labeler, Scorer
from mrg.metrics.leaderboard import COLUMNS, SCORES, format_leaderboard, leaderboard
from mrg.metrics.leaderboard_page import write_page
from mrg.metrics.nlg import NORMALIZATIONS, nlg_scores
from mrg.metrics.predictions import (
    ID_COLUMNS,
    PREDS_COLUMNS,
    TARGET_COLUMNS,
    Predictions,
    align,
    column_names,
    read_predictions,
)
from mrg.metrics.progress import ReportingLabeler
from mrg.metrics.results import (
    CONSTANT_NORMAL,
    evaluate_systems,
    format_conventions,
    format_nlg,
    format_table,
    most_frequent_report,
    remark_on_frequency,
)
from mrg.metrics.scorer import ReportScore, load_scorer
from mrg.metrics.texts import join, read_texts

DESCRIPTION = """Score generated reports against references: MCCS and CE-F1 in every convention in use, with 95 %
intervals, beside what a constant normal report and the most frequent reference earn on the same references."""
EPILOG = """The files are JSON lines (.jsonl, as `python -m mrg test` writes them), JSON (.json: a list of studies, or
ReXrank's object of studies by id) or tables with a head line (.csv, .tsv). Reports are labelled by rules unless
--labeler or --chexbert is given; see docs/labelers.md."""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    result = argparse.ArgumentParser("python -m mrg.metrics", description=DESCRIPTION, epilog=EPILOG)
    result.add_argument("predictions", type=Path, nargs="+",
                        help="file of generated reports, and of references unless --references is given; of several "
                        "files, one per system, a leaderboard is printed")  # fmt: skip
    result.add_argument("--references", type=Path, metavar="FILE", help="file of references, joined by id")
    result.add_argument("--by-row", action="store_true", help="join by the order of the files, not by id")
    result.add_argument("--nearest-image", type=Path, metavar="FILE",
                        help="reports of the nearest-image baseline, a row of the leaderboard")  # fmt: skip
    result.add_argument("--rank-by", default=COLUMNS[0], metavar="SCORE",
                        help='score of the ranking: "MCCS" or "CE-F1 CONVENTION" (default: %(default)s)')  # fmt: skip
    result.add_argument("--page", type=Path, metavar="FILE", help="HTML page of the leaderboard to write")
    result.add_argument("--compare", type=Path, metavar="FILE", help="second file: paired differences to it")
    columns = (("id", ID_COLUMNS), ("preds", PREDS_COLUMNS), ("target", TARGET_COLUMNS))
    for name, known in columns:
        usual = f"its column (default: the first of {', '.join(known)})"
        more = "; of two files each takes the first one given that it has, and the usual ones otherwise"
        result.add_argument(f"--{name}", metavar="COLUMN", action="append", default=[], help=f"{usual}{more}")
    result.add_argument("--labeler", metavar="MODULE.CLASS", help="label with it: a class or an object of yours, see "
                        "docs/extending.md (default: rules)")  # fmt: skip
    result.add_argument("--chexbert", metavar="CHECKPOINT", help="label with CheXbert: a file, a folder or a hub id")
    result.add_argument("--tokenizer", metavar="FOLDER", help="CheXbert's tokenizer (default: bert-base-uncased)")
    result.add_argument("--margin", type=float, default=0.5, help="margin of MCCS (default: %(default)s)")
    result.add_argument(
        "--nlg", action="store_true", help="add BLEU, METEOR, ROUGE-L and CIDEr: pip install 'mrg[nlg]'"
    )
    result.add_argument("--normalization", default="none", help="of texts before --nlg: none (default), ptb, r2gen-iu "
                        "or r2gen-mimic")  # fmt: skip
    result.add_argument("--scorer", action="append", default=[], metavar="PACKAGE.MODULE:FUNCTION",
                        help="a further score per report, see docs/scorers.md; may be repeated")  # fmt: skip
    result.add_argument("--trials", type=int, help="of the bootstrap (default: 1000; with --compare 10000, and as many "
                        "randomisations)")  # fmt: skip
    result.add_argument("--seed", type=int, default=0, help="of the trials (default: %(default)s)")
    result.add_argument(
        "--changed", type=int, default=10, help="how many changed studies to print (default: %(default)s)"
    )
    result.add_argument("--output", type=Path, metavar="FILE", help="JSON to write (default: beside the predictions)")
    return result


def main(args: Sequence[str] | None = None) -> None:
    """Run; a user's mistake prints one line and exits with 2."""
    options = parser().parse_args(args)
    options.systems, options.predictions = options.predictions, options.predictions[0]
    try:
        run(options)
    except BrokenPipeError:  # the reader of the output has seen enough
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
    if len(options.systems) > 1 or options.nearest_image is not None:
        _rank(options)
        return
    first, *others = _read(options)
    if options.compare is None:
        _score(first, _output(options, "scores.json"), options)
        return
    names = _names(options.predictions, options.compare)
    second = others[0]
    if not (first.has_ids and second.has_ids):
        missing = options.compare if first.has_ids else options.predictions
        raise ValueError(f"{missing} has no column of ids ({' or '.join(ID_COLUMNS)}): name it with --id.")
    second = align(first, second, names)
    other = options.compare.name
    if other == options.predictions.name:  # of two runs: the folder tells them apart
        other = f"{options.compare.resolve().parent.name}.{other}"
    output = _output(options, f"vs.{other}.json")
    result = compare_systems(
        first.preds, second.preds, first.target, _labeler(options), first.ids, options.margin,
        options.trials or 10_000, options.seed, _scorers(options),
    )  # fmt: skip
    columns = {"a_columns": first.columns, "b_columns": second.columns}
    write_json(output, {"a": str(options.predictions), "b": str(options.compare), **columns, **result})
    for name, predictions in zip(names, (first, second), strict=True):
        print(f"{name}: {_read_columns(predictions)}")
    print(f"{format_comparison(result, names, options.changed)}\n\nAll of it: {output}")


def _score(predictions: Predictions, output: Path, options: argparse.Namespace) -> None:
    name = options.predictions.stem
    if name in ("constant normal", "most frequent reference"):
        name += " (file)"
    systems = {
        "constant normal": [CONSTANT_NORMAL] * len(predictions.ids),
        "most frequent reference": [most_frequent_report(predictions.target)] * len(predictions.ids),
        name: predictions.preds,
    }
    differences = [(name, "constant normal"), (name, "most frequent reference")]
    result = evaluate_systems(
        systems, predictions.target, _labeler(options), options.margin, None, differences, options.trials or 1000,
        options.seed, _scorers(options),
    )  # fmt: skip
    result = {"predictions": str(options.predictions), "columns": predictions.columns, **result}
    write_json(output, result)
    print(_remarks(predictions))
    print(f"{format_table(result)}\n\n{format_conventions(result, name)}", flush=True)
    if options.nlg:  # last: where Java or the extra is missing, the rest is there already
        texts, how = predictions.target, options.normalization
        scores = {system: nlg_scores(preds, texts, how).corpus for system, preds in systems.items()}
        result["nlg"] = {"normalization": how, **scores}
        write_json(output, result)
        print(f"\n{format_nlg(result['nlg'])}")
    print(f"\nAll of it: {output}")


def _rank(options: argparse.Namespace) -> None:
    """The leaderboard of several files."""
    output = _output(options, "leaderboard.json")
    named = dict(zip(_system_names(options.systems), options.systems, strict=True))
    if options.nearest_image is not None:
        named["nearest image"] = options.nearest_image
    pairs = {name: _joined(path, options) for name, path in named.items()}
    first = next(iter(pairs.values()))
    for name, other in pairs.items():
        aligned = other if options.by_row else align(first, other, (next(iter(pairs)), name))
        if [text.split() for text in aligned.target] != [text.split() for text in first.target]:
            raise ValueError(f"{named[name]} has other references than {options.predictions}: use --references.")
        pairs[name] = aligned
    result = leaderboard(
        {name: pair.preds for name, pair in pairs.items()}, first.target, _labeler(options), options.margin,
        options.trials or 1000, options.seed, _scorers(options), options.rank_by,
    )  # fmt: skip
    result = {"files": {name: str(path) for name, path in named.items()}, **result}
    write_json(output, result)
    print(format_leaderboard(result), flush=True)
    if options.page is not None:
        write_page(result, options.page)
        print(f"\nPage: {options.page}")
    if options.nlg:
        how = options.normalization
        scores = {name: nlg_scores(pair.preds, first.target, how).corpus for name, pair in pairs.items()}
        result["nlg"] = {"normalization": how, **scores}
        write_json(output, result)
        print(f"\n{format_nlg(result['nlg'])}")
    print(f"\nAll of it: {output}")


def _joined(path: Path, options: argparse.Namespace) -> Predictions:
    """One system's reports with their references, from one file or from two."""
    if options.references is None:
        held = [column_names(path)]
        return read_predictions(path, *(_column(names, held[0], held) for names in _columns(options)))
    id_column, preds_column, target_column = (names[0] if names else None for names in _columns(options))
    preds = read_texts(path, "preds", id_column, preds_column)
    return join(preds, read_texts(options.references, "target", id_column, target_column), options.by_row)


def _columns(options: argparse.Namespace) -> list[list[str]]:
    return [options.id, options.preds, options.target]


def _system_names(paths: Sequence[Path]) -> list[str]:
    """The files' stems, with as many of their folders as tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join((*path.parts[-depth:-1], path.stem)) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"Expected different files, but one is given twice: {', '.join(map(str, paths))}.")


def _read_columns(predictions: Predictions) -> str:
    columns = predictions.columns
    return f"Reports: {columns['preds']!r}; references: {columns['target']!r}; ids: {columns['id']!r}."


def _remarks(predictions: Predictions) -> str:
    """Which columns were read, and what else a reader of the table should know."""
    lines = [_read_columns(predictions)]
    for side, texts in (("reports", predictions.preds), ("references", predictions.target)):
        empty = sum(not text.strip() for text in texts)
        if empty:
            lines.append(f"{empty:,} of {len(texts):,} {side} are empty.")
    if remark := remark_on_frequency(predictions.target, "most frequent reference", "reference"):
        lines.append(remark)
    if len(predictions.ids) < 100:
        lines.append(f"{len(predictions.ids)} studies are few: read the intervals, not the values.")
    return "\n".join(lines)


def _check(options: argparse.Namespace) -> None:
    """Before any work."""
    if options.by_row and options.references is None:
        raise ValueError("--by-row joins reports with the file of --references: pass it too.")
    several = len(options.systems) > 1 or options.nearest_image is not None
    if options.compare is not None and several:
        raise ValueError("--compare pairs two files: give one file beside it, or leave it out for a leaderboard.")
    if options.page is not None and not several:
        raise ValueError("--page is the page of a leaderboard: give at least two files of predictions.")
    if options.rank_by not in SCORES:
        raise ValueError(f"Expected --rank-by to be one of {', '.join(SCORES)}, but got {options.rank_by}.")
    for name, least in (("trials", 1), ("seed", 0), ("changed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"Expected --{name} to be at least {least}, but got {value}.")
    if options.compare is not None and options.nlg:
        raise ValueError("--nlg scores one file: corpus BLEU and CIDEr have no paired difference. Leave out --compare.")
    if options.normalization not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise ValueError(f"Expected --normalization to be one of {known}, but got {options.normalization}.")
    if options.labeler is not None and options.chexbert is not None:
        raise ValueError("--labeler and --chexbert both name a labeler: pass one of them.")
    if options.tokenizer is not None and options.chexbert is None:
        raise ValueError("--tokenizer is that of CheXbert: give --chexbert too.")


def _output(options: argparse.Namespace, ending: str) -> Path:
    """Where the JSON goes, after a look whether it can."""
    output: Path = options.output or options.predictions.with_name(f"{options.predictions.name}.{ending}")
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output} cannot be written: name a file in a folder that exists with --output.")
    others = (options.compare, options.references, options.nearest_image)
    inputs = [path.resolve() for path in (*options.systems, *others) if path is not None]
    if output.resolve() in inputs:
        raise ValueError(f"--output {output} is a file of predictions: name another one.")
    return output


def _read(options: argparse.Namespace) -> list[Predictions]:
    """The file, and the one that it is compared with."""
    paths = [options.predictions, *([] if options.compare is None else [options.compare])]
    if options.references is not None:
        return [_joined(path, options) for path in paths]
    given = [options.id, options.preds, options.target]
    if not any(given):
        return [read_predictions(path) for path in paths]
    held = [column_names(path) for path in paths]
    return [
        read_predictions(path, *(_column(names, own, held) for names in given))
        for path, own in zip(paths, held, strict=True)
    ]


def _column(given: Sequence[str], own: Collection[str], held: Sequence[Collection[str]]) -> str | None:
    """The first given column that a file has; None, for the usual ones, where only the other file has them."""
    for name in given:
        if not any(name in columns for columns in held):
            return name  # a slip of the pen: the reader says which columns there are
    return next((name for name in given if name in own), None)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """What to call two files: their own names where those differ, otherwise their folders' too."""
    if first.name != second.name:
        return first.name, second.name
    return str(first), str(second)


def _labeler(options: argparse.Namespace) -> Labeler:
    if options.labeler is not None:
        return ReportingLabeler(load_labeler(options.labeler))
    if options.chexbert is None:
        return ReportingLabeler(RulesLabeler())
    tokenizer = {} if options.tokenizer is None else {"tokenizer": options.tokenizer}
    return ReportingLabeler(CheXbertLabeler(options.chexbert, **tokenizer), block=1000)


def _scorers(options: argparse.Namespace) -> dict[str, Scorer]:
    return {spec: _named(spec) for spec in options.scorer}


def _named(spec: str) -> Scorer:
    metric = ReportScore(load_scorer(spec))

    def score(preds: Sequence[str], target: Sequence[str]) -> Any:
        try:
            return metric.scores(preds, target)
        except Exception as error:
            raise RuntimeError(f"The scorer {spec} failed: {type(error).__name__}: {error}") from error

    return score


if __name__ == "__main__":
    main()
