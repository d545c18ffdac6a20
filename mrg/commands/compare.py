"""`python -m mrg compare RUN_A RUN_B`: a paired comparison of two tested runs, as a table and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrg.errors import UserError
from mrg.log import log

if TYPE_CHECKING:
    from mrg.metrics.labels import Labeler
    from mrg.pages.tested_run import TestedRun


def main(args: Sequence[str]) -> None:
    """Parse the options and compare."""
    from argparse import ArgumentParser

    from mrg.run.find import path_or_run

    parser = ArgumentParser(
        "python -m mrg compare",
        description="Compare two tested runs on the same studies: a paired table of A - B, and a page with "
        "the findings that only one run gets right, study by study, starting with the studies that have most of them.",
    )
    add = parser.add_argument
    add("run_a", type=Path, help="name or folder of a tested run (with predictions.jsonl)")
    add("run_b", type=Path, help="name or folder of another tested run")
    add("--runs", type=Path, default=Path("runs"), help="folder in which runs are found by name (default: %(default)s)")
    add("--margin", type=float, help="margin of MCCS (default: that of the runs)")
    add("--labeler", metavar="MODULE.CLASS", help="labeler: a class or object to import, see docs/extending.md "
        "(default: that of the runs)")  # fmt: skip
    add("--chexbert", metavar="CHECKPOINT", help="CheXbert checkpoint to label with: a file, a folder or a hub id")
    add("--trials", type=int, default=10_000, dest="num_trials", help="number of bootstrap samples, and of "
        "randomization trials (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the trials (default: %(default)s)")
    add("--changed", type=int, default=10, dest="num_changed", help="number of changed studies to print (default: "
        "%(default)s)")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="page to write (default: RUN_A/compare-RUN_B.html)")
    add("--images", default="embed", help="how to show images: embed (default), link or none")
    add("--megabytes", type=float, default=40.0, help="budget of embedded images in megabytes (default: 40)")
    options = vars(parser.parse_args(list(args)))
    runs = options.pop("runs")
    for key in ("run_a", "run_b"):
        options[key] = path_or_run(str(options[key]), runs)
    compare(**options)


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
    images: str = "embed",
    megabytes: float = 40.0,
) -> Path:
    """Print the paired table of two runs and write their page; returns its path.

    The arguments are those of `main`. Without `labeler` and `chexbert`, reports are labelled by the labeler that both
    runs were tested with, if their configuration has it, and by rules otherwise.

    Raises:
        UserError: If a folder has no predictions, the studies or references differ, or a setting is out of range.
    """
    from mrg.files import print_if_read
    from mrg.metrics.compare import compare_systems, format_comparison
    from mrg.metrics.predictions import align, read_predictions
    from mrg.metrics.remarks import against_best
    from mrg.pages.gallery import Gallery, of_studies
    from mrg.pages.images import ImageOptions
    from mrg.pages.tested_run import TestedRun

    if num_trials < 1:
        raise UserError(f"Expected --trials to be at least 1, but got {num_trials}.")
    image_options = ImageOptions(images, megabytes=megabytes)
    page = output or run_a / f"compare-{run_b.resolve().name}.html"
    if page.is_dir() or not page.parent.is_dir():
        raise UserError(f"{page} cannot be written: set --output to a file in an existing folder.")
    runs = [TestedRun.read(folder) for folder in (run_a, run_b)]
    names = _names(run_a, run_b)
    first, second = (read_predictions(folder / "predictions.jsonl") for folder in (run_a, run_b))
    second = align(first, second, names)
    margin = _margin(runs, names) if margin is None else margin
    judge = _labeler(runs, names, labeler, chexbert)
    _warn(runs, names, judge)
    result = compare_systems(first.preds, second.preds, first.target, judge, first.ids, margin, num_trials, seed)
    results = _with_baselines(runs, names, judge, margin, seed)
    print_if_read("\n".join([format_comparison(result, names, num_changed), "", *against_best(results)]))
    by_id = {str(row["id"]): row for row in runs[1].rows}
    runs[1].rows = [by_id[name] for name in first.ids]
    Gallery(
        {name: [{**row, "id": str(row["id"])} for row in run.rows] for name, run in zip(names, runs, strict=True)},
        judge,
        margin,
        **of_studies(runs[0].studies() or runs[1].studies()),
        max_views=runs[0].max_views,
        results=results,
        comparison=result,
        title=f"{names[0]} and {names[1]}, study by study",
        image_options=image_options,
    ).write(page)
    print_if_read(f"\nPage: {page}")
    return page


def _warn(runs: Sequence[TestedRun], names: tuple[str, str], labeler: Labeler) -> None:
    """Warn of runs that were trained after their test, or tested with another labeler."""
    for run, name in zip(runs, names, strict=True):
        if run.is_outdated:
            log.warning(
                f"{name} was trained on after its test: these are reports of an earlier best checkpoint. Test it "
                f"again: python -m mrg test --config {run.folder / 'config.yaml'}"
            )
        if (tested := run.results.get("labeler", labeler.name)) != labeler.name:
            log.warning(f"{name} was tested with the labeler {tested}; here both are labelled by {labeler.name}.")


def _with_baselines(
    runs: Sequence[TestedRun], names: tuple[str, str], labeler: Labeler, margin: float, seed: int
) -> dict[str, Any]:
    """Results of both runs and of the baselines that the first run was tested with."""
    from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems

    target = runs[0].target
    baselines = runs[0].baselines or {"constant normal": CONSTANT_NORMAL}
    texts = {name: [text] * len(target) for name, text in baselines.items()}
    texts |= {name: run.reports for name, run in zip(names, runs, strict=True)}
    best = runs[0].best_constants
    if best is not None and (best.labeler, best.margin) != (labeler.name, margin):
        best = None
    formats = {name: run.format for name, run in zip(names, runs, strict=True) if run.format is not None}
    return evaluate_systems(texts, target, labeler, margin, formats, seed=seed, best=best)


def _names(run_a: Path, run_b: Path) -> tuple[str, str]:
    """Names of two runs: those of their folders if they differ, otherwise their paths."""
    a, b = run_a.resolve(), run_b.resolve()
    if a == b:
        raise UserError(f"{run_a} and {run_b} are the same run: pass two runs.")
    return (a.name, b.name) if a.name != b.name else (str(run_a), str(run_b))


def _margin(runs: Sequence[TestedRun], names: tuple[str, str]) -> float:
    """Margin that both runs were tested with."""
    margins = [run.results.get("margin", 0.5) for run in runs]
    if margins[0] != margins[1]:
        raise UserError(
            f"{names[0]} was tested with an MCCS margin of {margins[0]:g}, {names[1]} with {margins[1]:g}: choose one "
            "with --margin."
        )
    return float(margins[0])


def _labeler(runs: Sequence[TestedRun], names: tuple[str, str], path: str | None, chexbert: str | None) -> Labeler:
    """The labeler of the options, or else the one that both runs were tested with, or else the rules."""
    from mrg.metrics.labelers.chexbert import CheXbertLabeler
    from mrg.metrics.labelers.named import load_labeler
    from mrg.metrics.labelers.rules import RulesLabeler

    if path is not None and chexbert is not None:
        raise UserError("--labeler and --chexbert are mutually exclusive.")
    if path is not None:
        return load_labeler(path)
    if chexbert is not None:
        return CheXbertLabeler(chexbert)
    tested = {run.results.get("labeler", RulesLabeler.name) for run in runs}
    if len(tested) == 1 and tested != {RulesLabeler.name}:
        for run, name in zip(runs, names, strict=True):
            try:
                labeler = run.labeler()
            except ValueError as error:
                raise UserError(
                    f"{name} was tested with the labeler {tested.pop()}, which cannot be made here ({error}): choose "
                    "one with --labeler, such as mrg.metrics.RulesLabeler."
                ) from error
            if labeler is not None and labeler.name in tested:
                return labeler
    return RulesLabeler()
