"""`python -m mrg compare A B`: a paired comparison of two runs, or files of reports, as a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrg.errors import UserError


def main(args: Sequence[str]) -> None:
    """Parse the options and compare."""
    from argparse import ArgumentParser

    from mrg.commands.systems import add_options, as_path

    parser = ArgumentParser(
        "python -m mrg compare",
        description="Compare two tested runs, or files of reports by any models, on the same studies: a paired table "
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
    add_options(parser)
    options = vars(parser.parse_args(list(args)))
    runs = options.pop("runs")
    for key in ("run_a", "run_b"):
        options[key] = as_path(options[key], runs)
    columns = {key: options.pop(key) for key in ("references", "by_row", "id", "preds", "target")}
    compare(**options, columns=columns)


def compare(
    run_a: Path,
    run_b: Path,
    output: Path | None = None,
    margin: float | None = None,
    labeler: str | None = None,
    chexbert: str | None = None,
    num_trials: int = 10_000,
    seed: int = 0,
    num_changed: int = 10,
    images: str | None = None,
    show: str = "embed",
    image_size: int = 1024,
    megabytes: float = 40.0,
    redact: bool = False,
    columns: dict[str, object] | None = None,
) -> Path:
    """Print the paired table of two systems and write their page; returns its path.

    The arguments are those of `main`. Without `labeler` and `chexbert`, reports are labelled by the labeler that both
    runs were tested with, if their configuration has it, and by rules otherwise.

    Raises:
        UserError: If there are no predictions, the studies or references differ, or a setting is out of range.
    """
    from mrg.commands import systems as shared
    from mrg.files import print_if_read
    from mrg.metrics.compare import compare_systems, format_comparison
    from mrg.metrics.predictions import align
    from mrg.metrics.remarks import against_best
    from mrg.pages.gallery import Gallery
    from mrg.pages.report_file import Columns, read_system

    if num_trials < 1:
        raise UserError(f"Expected --trials to be at least 1, but got {num_trials}.")
    folder, image_options = shared.image_options(images, show, image_size, megabytes)
    names = shared.system_names([run_a, run_b])
    page = output or _page(run_a, run_b, redact)
    shared.check_page(page)
    runs = [read_system(path, Columns(**(columns or {}))) for path in (run_a, run_b)]  # type: ignore[arg-type]
    first, second = (run.predictions() for run in runs)
    second = align(first, second, (names[0], names[1]))
    margin = shared.choose_margin(runs, names) if margin is None else margin
    judge = shared.choose_labeler(runs, names, labeler, chexbert)
    shared.warn(runs, names, judge)
    result = compare_systems(first.preds, second.preds, first.target, judge, first.ids, margin, num_trials, seed)
    systems = {name: shared.same_rows(run, first.ids) for name, run in zip(names, runs, strict=True)}
    results = shared.with_baselines(systems, runs, judge, margin, seed)
    print_if_read("\n".join([format_comparison(result, (names[0], names[1]), num_changed), "", *against_best(results)]))
    Gallery(
        systems,
        judge,
        margin,
        **({} if redact else shared.find_views(folder, runs, first.ids)),
        max_views=runs[0].max_views,
        results=results,
        comparison=result,
        title=f"{names[0]} and {names[1]}, study by study",
        image_options=image_options,
        redact=redact,
    ).write(page)
    print_if_read(f"\nPage: {page}")
    return page


def _page(run_a: Path, run_b: Path, redact: bool) -> Path:
    """Default page, in the folder of A."""
    home = run_a if run_a.is_dir() else run_a.parent
    stem = run_b.resolve().name if run_b.is_dir() else run_b.stem
    return home / f"compare-{stem}{'-redacted' if redact else ''}.html"
