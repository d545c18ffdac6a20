"""`python -m mrg compare RUN_A RUN_B`: two tested runs study by study, as a table and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrg.errors import UserError


def main(args: Sequence[str]) -> None:
    """Parse the options and compare."""
    from argparse import ArgumentParser

    parser = ArgumentParser(
        "python -m mrg compare",
        description="Compare two tested runs on the same studies: the paired table of A - B, and a page that shows, "
        "study by study, the findings that only one of them has right, those with most of them first.",
    )
    parser.add_argument("run_a", type=Path, help="folder of a tested run (it holds predictions.jsonl)")
    parser.add_argument("run_b", type=Path, help="folder of the other one")
    parser.add_argument("--margin", type=float, help="margin of MCCS (default: that of the runs)")
    parser.add_argument("--labeler", metavar="MODULE.CLASS", help="label with it: a class or an object of yours, see "
                        "docs/extending.md (default: that of the runs)")  # fmt: skip
    parser.add_argument("--chexbert", metavar="CHECKPOINT", help="label with CheXbert: a file, a folder or a hub id")
    parser.add_argument("--trials", type=int, default=10_000, help="of the bootstrap and the randomisation "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the trials (default: %(default)s)")
    parser.add_argument("--changed", type=int, default=10, help="changed studies to print (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="page to write (default: RUN_A/compare-RUN_B.html)")
    parser.add_argument("--images", default="embed", help="embed (default), link or none")
    parser.add_argument("--megabytes", type=float, default=40.0, help="budget of embedded images (default: 40)")
    options = parser.parse_args(list(args))
    compare(
        options.run_a, options.run_b, options.output, options.margin, options.chexbert, options.trials, options.seed,
        options.changed, options.images, options.megabytes, options.labeler,
    )  # fmt: skip


def compare(
    run_a: Path,
    run_b: Path,
    output: Path | None = None,
    margin: float | None = None,
    chexbert: str | None = None,
    num_trials: int = 10_000,
    seed: int = 0,
    num_changed: int = 10,
    images: str = "embed",
    megabytes: float = 40.0,
    labeler_path: str | None = None,
) -> Path:
    """Print the paired table of two runs and write their page.

    Args:
        run_a: Folder of a tested run.
        run_b: Folder of the other one.
        output: Page to write; `RUN_A/compare-RUN_B.html` by default.
        margin: Of MCCS; that of the runs by default.
        chexbert: Checkpoint of CheXbert, to label the reports with.
        num_trials: Of the bootstrap and of the randomisation.
        seed: Of both.
        num_changed: How many changed studies to print.
        images: See `mrg.pages.pictures.Pictures`.
        megabytes: See `mrg.pages.pictures.Pictures`.
        labeler_path: Labeler to label with, see `mrg.metrics.labelers.named.load_labeler`. Without it and `chexbert` it
            is the one that both runs were tested with, where their configuration says which; otherwise the rules.

    Returns:
        The page.

    Raises:
        ValueError: If a folder holds no predictions, the studies or references differ, or a setting is out of range.
    """
    from mrg.files import print_if_read as say
    from mrg.metrics.compare import compare_systems, format_comparison
    from mrg.metrics.predictions import align, read_predictions
    from mrg.pages.gallery import Gallery, of_studies
    from mrg.pages.pictures import Pictures
    from mrg.pages.runs import Run

    if num_trials < 1:
        raise UserError(f"Expected --trials to be at least 1, but got {num_trials}.")
    pictures = Pictures(images, megabytes=megabytes)
    page = output or run_a / f"compare-{run_b.resolve().name}.html"
    if page.is_dir() or not page.parent.is_dir():
        raise UserError(f"{page} cannot be written: name a file in a folder that exists with --output.")
    runs = [Run.read(folder) for folder in (run_a, run_b)]
    names = _names(run_a, run_b)
    first, second = (read_predictions(folder / "predictions.jsonl") for folder in (run_a, run_b))
    second = align(first, second, names)
    margin = _margin(runs, names) if margin is None else margin
    labeler = _labeler(runs, names, labeler_path, chexbert)
    for run, name in zip(runs, names, strict=True):
        if run.is_outdated:
            say(f"{name} was trained on after its test: these are reports of an earlier best checkpoint. Test it anew: "
                f"python -m mrg test --config {run.folder / 'config.yaml'}")  # fmt: skip
        if (tested := run.results.get("labeler", labeler.name)) != labeler.name:
            say(f"{name} was tested with the labeler {tested}; here both are read by {labeler.name} (see --labeler).")
    result = compare_systems(first.preds, second.preds, first.target, labeler, first.ids, margin, num_trials, seed)
    say(format_comparison(result, names, num_changed))
    by_id = {str(row["id"]): row for row in runs[1].rows}
    systems = dict(zip(names, (runs[0].rows, [by_id[name] for name in first.ids]), strict=True))
    studies = runs[0].studies() or runs[1].studies()
    gallery = Gallery(
        {name: [{**row, "id": str(row["id"])} for row in rows] for name, rows in systems.items()},
        labeler,
        margin,
        **of_studies(studies),
        max_views=runs[0].max_views,
        results=_beside_baselines(systems, runs, labeler, margin, seed),
        comparison=result,
        title=f"{names[0]} and {names[1]}, study by study",
        pictures=pictures,
    )
    gallery.write(page)
    say(f"\nPage: {page}")
    return page


def _beside_baselines(
    systems: dict[str, list[dict[str, Any]]], runs: Sequence[Any], labeler: Any, margin: float, seed: int
) -> dict[str, Any]:
    """Both systems in one table with the baselines that the first run was tested beside."""
    from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems

    target = [row["target"] for row in runs[0].rows]
    baselines = runs[0].results.get("protocol", {}).get("baselines") or {"constant normal": CONSTANT_NORMAL}
    texts = {name: [text] * len(target) for name, text in baselines.items()}
    texts |= {name: [row["prediction"] for row in rows] for name, rows in systems.items()}
    formats = {
        name: sum(bool(row["format"]) for row in rows) / len(rows)
        for name, rows in systems.items()
        if all("format" in row for row in rows)
    }
    return evaluate_systems(texts, target, labeler, margin, formats, seed=seed)


def _names(run_a: Path, run_b: Path) -> tuple[str, str]:
    """What to call two runs: the names of their folders where those differ, otherwise their paths."""
    a, b = run_a.resolve(), run_b.resolve()
    if a == b:
        raise UserError(f"{run_a} and {run_b} are the same run: name two.")
    return (a.name, b.name) if a.name != b.name else (str(run_a), str(run_b))


def _margin(runs: Sequence[Any], names: tuple[str, str]) -> float:
    """The margin that both runs were tested with."""
    margins = [run.results.get("margin", 0.5) for run in runs]
    if margins[0] != margins[1]:
        raise UserError(
            f"{names[0]} was tested with an MCCS margin of {margins[0]:g}, {names[1]} with {margins[1]:g}: choose one "
            "with --margin."
        )
    return float(margins[0])


def _labeler(runs: Sequence[Any], names: tuple[str, str], path: str | None, chexbert: str | None) -> Any:
    """The labeler that is named; otherwise the one that both runs were tested with; otherwise the rules."""
    from mrg.metrics.labelers.chexbert import CheXbertLabeler
    from mrg.metrics.labelers.named import load_labeler
    from mrg.metrics.labelers.rules import RulesLabeler

    if path is not None and chexbert is not None:
        raise UserError("--labeler and --chexbert both name a labeler: pass one of them.")
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
                    f"{name} was tested with the labeler {tested.pop()}, which cannot be made here ({error}): name one "
                    f"with --labeler, such as mrg.metrics.RulesLabeler."
                ) from error
            if labeler is not None and labeler.name in tested:
                return labeler
    return RulesLabeler()
