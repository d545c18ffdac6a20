"""`python -m mrg compare A B`: a paired comparison of two runs, or files of reports, as a table and a page."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mrg.commands import systems as shared
from mrg.commands.arguments import OneLineParser
from mrg.errors import UserError


def main(args: Sequence[str]) -> None:
    """Parse the options and compare."""
    parser = OneLineParser(
        "compare",
        "Compare two tested runs, or files of reports by any models, on the same studies: a paired table "
        "of A - B, and a page with the findings that only one of them gets right, study by study, starting with the "
        "studies that have most of them.",
    )
    add = parser.add_argument
    add("run_a", metavar="A", type=Path, help="name or folder of a tested run (with predictions.jsonl), or a file of "
        "reports (.jsonl, .json, .csv, .tsv)")  # fmt: skip
    add("run_b", metavar="B", type=Path, help="another one, on the same studies")
    add("--trials", type=int, default=10_000, dest="num_trials", help="number of bootstrap samples, and of "
        "randomization trials (default: %(default)s)")  # fmt: skip
    add("--changed", type=int, default=10, dest="num_changed", help="number of changed studies to print (default: "
        "%(default)s)")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="page to write (default: compare-B.html in the folder of A)")
    shared.add_options(parser)
    options = parser.parse_args(list(args))
    options.run_a, options.run_b = (shared.as_path(path, options.runs) for path in (options.run_a, options.run_b))
    compare(options)


def compare(options: Namespace) -> Path:
    """Print the paired table of two systems and write their page; returns its path.

    Without a labeler in the options, reports are labelled by the labeler that both runs were tested with, if their
    configuration has it, and by rules otherwise.

    Args:
        options: Arguments of `main`.

    Raises:
        UserError: If there are no predictions, the studies or references differ, or a setting is out of range.
    """
    from mrg.files import print_if_read
    from mrg.metrics.compare import compare_systems, format_comparison
    from mrg.metrics.predictions import align
    from mrg.metrics.remarks import against_best
    from mrg.pages.gallery import Gallery
    from mrg.pages.report_file import read_system

    if options.num_trials < 1:
        raise UserError(f"Expected --trials to be at least 1, but got {options.num_trials}.")
    folder, image_options = shared.image_options(options)
    paths = (options.run_a, options.run_b)
    names = shared.system_names(paths)
    page = options.output or _page(*paths, options.redact)
    runs = [read_system(path, shared.columns(options)) for path in paths]
    shared.check_page(page)
    first, second = (run.predictions() for run in runs)
    second = align(first, second, (names[0], names[1]))
    margin = shared.choose_margin(runs, names) if options.margin is None else options.margin
    labeler = shared.choose_labeler(runs, names, options.labeler, options.chexbert)
    shared.warn(runs, names, labeler)
    result = compare_systems(
        first.preds, second.preds, first.target, labeler, first.ids, margin, options.num_trials, options.seed
    )
    systems = {name: shared.same_rows(run, first.ids) for name, run in zip(names, runs, strict=True)}
    results = shared.with_baselines(systems, runs, labeler, margin, options.seed)
    table = format_comparison(result, (names[0], names[1]), options.num_changed)
    print_if_read("\n".join([table, "", *against_best(results)]))
    Gallery(
        systems,
        labeler,
        margin,
        **({} if options.redact else shared.find_views(folder, runs, first.ids)),
        max_views=runs[0].max_views,
        results=results,
        comparison=result,
        title=f"{names[0]} and {names[1]}, study by study",
        image_options=image_options,
        redact=options.redact,
    ).write(page)
    print_if_read(f"\nPage: {page}")
    return page


def _page(run_a: Path, run_b: Path, redact: bool) -> Path:
    """Default page, in the folder of A."""
    home = run_a if run_a.is_dir() else run_a.parent
    stem = run_b.resolve().name if run_b.is_dir() else run_b.stem
    return home / f"compare-{stem}{'-redacted' if redact else ''}.html"
