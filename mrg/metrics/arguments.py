"""Arguments of `python -m mrg.metrics`, and the labeler, scorers and output file that they name."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrg.errors import ExtensionError, MrgError, UserError, install, one_line, where_raised
from mrg.log import configure, log, tolerant_streams
from mrg.metrics.imports import name_of
from mrg.metrics.labelers.chexbert import CheXbertLabeler
from mrg.metrics.labelers.named import load_labeler
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import Labeler, Scorer
from mrg.metrics.leaderboard import COLUMNS, SCORES
from mrg.metrics.nlg import NORMALIZATIONS
from mrg.metrics.predictions import ID_COLUMNS, PREDS_COLUMNS, TARGET_COLUMNS
from mrg.metrics.resampling import MIN_CASES
from mrg.metrics.scorer import ReportScore, is_upward, load_scorer
from mrg.metrics.scores.named import NAMES, parse_scores

DESCRIPTION = """Score generated reports against references: MCCS and CE-F1 in every convention in use, with 95 %
intervals, next to baselines: the constant normal report, the most frequent reference and, with --train, the best
constant report of each score. Several files are ranked in a leaderboard."""
EPILOG = """The files are JSON lines (.jsonl, as written by `python -m mrg test`), JSON (.json: a list of studies, or
ReXrank's object of studies by id) or tables with a header line (.csv, .tsv); with --references also CSV files without
a header line and JSON objects of reports by id. Reports are labelled by rules unless
--labeler or --chexbert is given."""


def parser() -> argparse.ArgumentParser:
    """Parser of the command's arguments."""
    result = argparse.ArgumentParser("python -m mrg.metrics", description=DESCRIPTION, epilog=EPILOG)
    add = result.add_argument
    add("predictions", type=Path, nargs="+", help="file of generated reports, and of references unless --references is "
        "given; several files, one per system, are ranked in a leaderboard")  # fmt: skip
    add("--references", type=Path, metavar="FILE", help="file of references, joined with the predictions by id")
    add("--by_row", "--by-row", action="store_true", help="join by the order of the files instead of by id")
    add("--nearest_image", "--nearest-image", type=Path, metavar="FILE", help="predictions of the nearest-image "
        "baseline, for the leaderboard")  # fmt: skip
    add("--rank_by", "--rank-by", default=COLUMNS[0], metavar="SCORE", help="score of the ranking: "
        "'MCCS' or 'CE-F1 CONVENTION' (default: %(default)s)")  # fmt: skip
    add("--page", type=Path, metavar="FILE", help="HTML page of the leaderboard to write")
    add("--compare", type=Path, metavar="FILE", help="second file, for paired differences")
    columns = (
        ("id", "study ids", ID_COLUMNS),
        ("preds", "generated reports", PREDS_COLUMNS),
        ("target", "reference reports", TARGET_COLUMNS),
    )
    for name, what, known in columns:
        text = f"column of {what} (default: the first of {', '.join(known)}); may be repeated for several files: each"
        add(f"--{name}", metavar="COLUMN", action="append", default=[], help=f"{text} uses the first one that it has")
    add("--labeler", metavar="MODULE.CLASS", help="labeler: class or object to import, which turns a list of "
        "reports into labels (default: rules)")  # fmt: skip
    add("--chexbert", metavar="CHECKPOINT", help="CheXbert checkpoint to label with: a file, a folder or a hub id")
    add("--tokenizer", metavar="FOLDER", help="tokenizer of CheXbert (default: bert-base-uncased)")
    add("--train", type=Path, metavar="FILE", help="training reports, for the best constant report of each "
        "score: a file like the others, or an annotation.json")  # fmt: skip
    add("--margin", type=float, default=0.5, help="margin of MCCS (default: %(default)s)")
    add("--min_cases", type=int, default=MIN_CASES, help="fewest references with a condition that counts in "
        "informedness (default: %(default)s)")  # fmt: skip
    add("--nlg", action="store_true", help=f"add BLEU, METEOR, ROUGE-L and CIDEr: {install('nlg')}")
    add("--normalization", choices=NORMALIZATIONS, default="none", help="text normalization before --nlg (default: "
        "%(default)s)")  # fmt: skip
    add("--scores", metavar="NAMES", help="one table of the scores named here, separated by commas, resumable: "
        f"{', '.join(NAMES)}")  # fmt: skip
    add("--bertscore", nargs="+", metavar=("ENCODER", "LAYER"), help="encoder of the score bertscore, and its layer "
        "if it is not the last one")  # fmt: skip
    add("--radgraph", nargs="+", metavar=("CHECKPOINT", "ENCODER"), help="weights of the score radgraph, and the "
        "configuration and tokenizer of its encoder")  # fmt: skip
    add("--ratescore", nargs="+", metavar=("NER", "ENCODER"), help="weights of the score ratescore, and 'punctuation' "
        "for sentences without medspacy")  # fmt: skip
    add("--judge", nargs=2, metavar=("URL", "MODEL"), help="OpenAI-compatible server and model of the score judge")
    add("--scorer", action="append", default=[], metavar="PACKAGE.MODULE:FUNCTION", help="further score per report, "
        "a function of two lists of texts, reports and references; may be repeated")  # fmt: skip
    add("--trials", type=int, help="number of bootstrap samples (default: 1000; with --compare 10000, and as many "
        "randomization trials)")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the trials (default: %(default)s)")
    add("--changed", type=int, default=10, help="number of changed studies to print (default: %(default)s)")
    add("--output", type=Path, metavar="FILE", help="JSON file to write (default: next to the predictions)")
    return result


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Run a command: notes go to the log, and an error that the user can fix prints one line and exits with 2.

    Args:
        program: Name of the command in the line.

    Raises:
        SystemExit: For such an error, and with 1 if the standard output could not be written.
    """
    configure()
    with tolerant_streams() as output:
        try:
            yield
        except Exception as error:
            line = one_line(error)
            if line is None:
                raise
            print(f"{program}: {line}", file=sys.stderr)
            raise SystemExit(2) from None
    if output is not None and output.problem is not None and not isinstance(output.problem, BrokenPipeError):
        raise SystemExit(1)


def check(options: argparse.Namespace) -> None:
    """Check the options before any work."""
    several = len(options.systems) > 1 or options.nearest_image is not None
    if options.by_row and options.references is None:
        raise UserError("--by_row joins reports with the file of --references, which is missing.")
    if options.compare is not None and several:
        raise UserError("--compare pairs two files: pass one file next to it, or leave it out for a leaderboard.")
    if options.page is not None and not several:
        raise UserError("--page is the page of a leaderboard: pass at least two files of predictions.")
    if options.rank_by not in SCORES:
        raise UserError(f"Expected --rank_by to be one of {', '.join(SCORES)}, but got {options.rank_by!r}.")
    for name, least in (("trials", 1), ("seed", 0), ("changed", 0), ("min_cases", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"Expected --{name} to be at least {least}, but got {value}.")
    if options.scores is not None:
        options.scores = parse_scores(options.scores)
        if several or options.compare is not None:
            raise UserError("--scores is the table of one file: leave out --compare and further files.")
        if options.nlg:
            raise UserError("With --scores, write nlg among its names instead of --nlg.")
    _check_use(options, several)
    if options.compare is not None and options.nlg:
        raise UserError("--nlg scores one file: corpus BLEU and CIDEr have no paired difference. Leave out --compare.")
    if options.compare is not None and options.train is not None:
        raise UserError("--train is for scoring one file, or for a leaderboard. Leave out --compare.")
    if options.labeler is not None and options.chexbert is not None:
        raise UserError("--labeler and --chexbert are mutually exclusive.")
    if options.tokenizer is not None and options.chexbert is None:
        raise UserError("--tokenizer requires --chexbert.")


def _check_use(options: argparse.Namespace, several: bool) -> None:
    """Check that no option is given that would be ignored."""
    scores = options.scores or []
    for name in ("bertscore", "radgraph", "ratescore", "judge"):
        users = [name, "radcliq"] if name in ("bertscore", "radgraph") else [name]
        if getattr(options, name) is not None and not any(user in scores for user in users):
            raise UserError(f"--{name} is for --scores: add {' or '.join(users)} to the names of --scores.")
    if options.normalization != "none" and not (options.nlg or "nlg" in scores):
        raise UserError("--normalization requires --nlg, or nlg among the names of --scores.")
    if options.rank_by != COLUMNS[0] and not several:
        raise UserError("--rank_by ranks several files: pass at least two files of predictions.")
    if options.changed != 10 and options.compare is None:
        raise UserError("--changed is for the list of --compare, which is missing.")


def output_file(options: argparse.Namespace, ending: str) -> Path:
    """JSON file to write, after a check that it can be written."""
    output: Path = options.output or options.predictions.with_name(f"{options.predictions.name}.{ending}")
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise UserError(f"{output} cannot be written: set --output to a file in an existing folder.")
    others = (options.compare, options.references, options.nearest_image, options.train)
    inputs = [path.resolve() for path in (*options.systems, *others) if path is not None]
    if output.resolve() in inputs:
        raise UserError(f"--output {output} is a file of predictions or references: choose another file.")
    return output


def make_labeler(options: argparse.Namespace) -> Labeler:
    """The labeler; one that may take minutes logs its progress."""
    if options.labeler is not None:
        return ReportingLabeler(load_labeler(options.labeler))
    if options.chexbert is None:
        return RulesLabeler()  # 50,000 reports in seconds, after each of which `label_together` has a note
    tokenizer = {} if options.tokenizer is None else {"tokenizer": options.tokenizer}
    return ReportingLabeler(CheXbertLabeler(options.chexbert, **tokenizer), block=1000)


def make_scorers(options: argparse.Namespace) -> dict[str, Scorer]:
    """The further scores by name."""
    return {spec: _scorer(spec) for spec in options.scorer}


def _scorer(spec: str) -> Scorer:
    scorer = load_scorer(spec)
    metric = ReportScore(scorer)

    def score(preds: Sequence[str], target: Sequence[str]) -> Any:
        try:
            return metric.scores(preds, target)
        except MrgError:
            raise
        except Exception as error:
            raise ExtensionError(f"The scorer {spec} failed: {where_raised(error)}") from error

    score.higher_is_better = is_upward(scorer)  # type: ignore[attr-defined]
    return score


class ReportingLabeler(Labeler):
    """A labeler that logs its progress on many reports.

    Args:
        labeler: Any labeler.
        block: Number of reports that are labelled at a time; up to that many are labelled without a note.
        seconds: Minimum time between two notes.
    """

    def __init__(self, labeler: Labeler, block: int = 10_000, seconds: float = 5.0) -> None:
        self.labeler, self.block, self.seconds = labeler, block, seconds
        self.name = name_of(labeler)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports."""
        if len(texts) <= self.block:
            return self.labeler(texts)
        distinct = list(dict.fromkeys(texts))
        parts, told = [], time.monotonic()
        for start in range(0, len(distinct), self.block):
            parts.append(self.labeler(distinct[start : start + self.block]))
            done = start + len(parts[-1])
            if time.monotonic() - told >= self.seconds:
                told = time.monotonic()
                log.info(f"Labelled {done:,} of {len(distinct):,} distinct reports.")
        row = {text: i for i, text in enumerate(distinct)}
        return torch.cat(parts)[torch.tensor([row[text] for text in texts])]
