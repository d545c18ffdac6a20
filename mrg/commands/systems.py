"""What `compare` and `gallery` share: their options, and the systems, labeler, margin and scores that these set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrg.errors import UserError
from mrg.log import log
from mrg.run.find import path_or_run

if TYPE_CHECKING:
    from mrg.datamodules.study import View
    from mrg.metrics.labels import Labeler
    from mrg.pages.images import ImageOptions
    from mrg.pages.report_file import Columns
    from mrg.pages.tested_run import TestedRun

SHOW = ("embed", "link", "none")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the files, the labeler and the page."""
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder in which runs are found by name "
        "(default: %(default)s)")  # fmt: skip
    files = parser.add_argument_group("files of reports")
    add = files.add_argument
    add("--references", type=Path, metavar="FILE", help="file of references, joined with the reports by id")
    add("--by_row", "--by-row", action="store_true", help="join by the order of the files instead of by id")
    for name, what in (("id", "study ids"), ("preds", "generated reports"), ("target", "reference reports")):
        add(f"--{name}", metavar="COLUMN", help=f"column of {what} (default: the first known name)")
    add("--images", metavar="FOLDER", help="folder of the images, found by the ids in the names of files and "
        "subfolders (default: the images that the predictions or the run's data name); embed, link and none are those "
        "of --show")  # fmt: skip
    add = parser.add_argument_group("labels").add_argument
    add("--margin", type=float, help="margin of MCCS (default: that of the runs, otherwise 0.5)")
    add("--labeler", metavar="MODULE.CLASS", help="labeler: class or object to import, which turns a list of "
        "reports into labels (default: that of the runs, otherwise rules)")  # fmt: skip
    add("--chexbert", metavar="CHECKPOINT", help="CheXbert checkpoint to label with: a file, a folder or a hub id")
    add("--seed", type=int, default=0, help="seed of the trials (default: %(default)s)")
    add = parser.add_argument_group("page").add_argument
    add("--show", choices=SHOW, default="embed", help="embed the images, link to their files, or show none (default: "
        "%(default)s)")  # fmt: skip
    add("--image_size", "--image-size", type=int, default=1024, help="longest side of an embedded image in pixels, "
        "reduced to fit --megabytes (default: %(default)s)")  # fmt: skip
    add("--megabytes", type=float, default=40.0, help="budget of embedded images in megabytes (default: %(default)g)")
    add("--redact", action="store_true", help="write a page without texts, images and ids: labels and scores only")


def as_path(path: Path, runs: Path) -> Path:
    """Path of a file of reports, or of a run that may be given by name."""
    return path if path.suffix.lower() in (".jsonl", ".json", ".csv", ".tsv") else path_or_run(str(path), runs)


def columns(options: argparse.Namespace) -> Columns:
    """Where the texts of files of reports are."""
    from mrg.pages.report_file import Columns

    return Columns(options.references, options.by_row, options.id, options.preds, options.target)


def image_options(options: argparse.Namespace) -> tuple[Path | None, ImageOptions]:
    """Folder of the images, if `--images` sets one, and how to show them.

    Raises:
        UserError: If `--images` is no folder, or a setting is out of range.
    """
    from mrg.pages.images import ImageOptions

    images, show = (None, options.images) if options.images in SHOW else (options.images, options.show)
    if images is not None and not Path(images).is_dir():
        raise UserError(f"Expected --images to be a folder of images (or embed, link, none), but got {images!r}.")
    made = ImageOptions(show, options.image_size, megabytes=options.megabytes)
    return Path(images) if images is not None else None, made


def check_page(page: Path) -> None:
    """Check before the work that a page can be written.

    Raises:
        UserError: If it cannot.
    """
    if page.is_dir() or not page.parent.is_dir():
        raise UserError(f"{page} cannot be written: set --output to a file in an existing folder.")


def system_names(paths: Sequence[Path]) -> list[str]:
    """Names of runs and files: those of the folders, or of the files without suffix, or else the paths.

    Raises:
        UserError: If two paths are the same.
    """
    resolved = [path.resolve() for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            noun = "run" if path.is_dir() else "file"
            raise UserError(f"{paths[resolved.index(path)]} and {paths[place]} are the same {noun}: pass two {noun}s.")
    names = [path.name if path.is_dir() else path.stem for path in resolved]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def same_rows(run: TestedRun, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a system in the order of the ids."""
    by_id = {str(row["id"]): row for row in run.rows}
    return [{**by_id[name], "id": name} for name in ids]


def find_views(folder: Path | None, runs: Sequence[TestedRun], ids: Sequence[str]) -> dict[str, Any]:
    """Arguments of `Gallery` with the images of the studies: those of a folder, or else those that a system names."""
    from mrg.pages.gallery import of_studies
    from mrg.pages.matched_images import match_images

    views: dict[str, tuple[View, ...]] = {}
    if folder is not None:
        views = match_images(folder, ids)
        return {"views": views}
    return of_studies(next(filter(None, (run.studies() for run in runs)), {}))


def choose_margin(runs: Sequence[TestedRun], names: Sequence[str]) -> float:
    """Margin that the runs were tested with; 0.5 if none was.

    Raises:
        UserError: If they differ.
    """
    margins = {name: run.results["margin"] for run, name in zip(runs, names, strict=True) if "margin" in run.results}
    first, *others = margins or {"": 0.5}
    for name in others:
        if margins[name] != margins[first]:
            raise UserError(
                f"{first} was tested with an MCCS margin of {margins[first]:g}, {name} with {margins[name]:g}: choose "
                "one with --margin."
            )
    return float(margins.get(first, 0.5))


def choose_labeler(runs: Sequence[TestedRun], names: Sequence[str], path: str | None, chexbert: str | None) -> Labeler:
    """The labeler of the options, or else the one that all runs were tested with, or else the rules.

    Raises:
        UserError: If it cannot be made.
    """
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


def warn(runs: Sequence[TestedRun], names: Sequence[str], labeler: Labeler) -> None:
    """Warn of runs that were trained after their test, or tested with another labeler."""
    both = "both are" if len(runs) == 2 else "reports are"
    for run, name in zip(runs, names, strict=True):
        if run.is_outdated:
            log.warning(
                f"{name} was trained on after its test: these are reports of an earlier best checkpoint. Test it "
                f"again: python -m mrg test --config {run.folder / 'config.yaml'}"
            )
        if (tested := run.results.get("labeler", labeler.name)) != labeler.name:
            log.warning(f"{name} was tested with the labeler {tested}; here {both} labelled by {labeler.name}.")


def with_baselines(
    systems: dict[str, list[dict[str, Any]]], runs: Sequence[TestedRun], labeler: Labeler, margin: float, seed: int
) -> dict[str, Any]:
    """Results of all systems and of the baselines that the first run was tested with."""
    from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems

    target = [row["target"] for row in next(iter(systems.values()))]
    baselines = runs[0].baselines or {"constant normal": CONSTANT_NORMAL}
    texts = {name: [text] * len(target) for name, text in baselines.items()}
    texts |= {name: [row["prediction"] for row in rows] for name, rows in systems.items()}
    best = runs[0].best_constants
    if best is not None and (best.labeler, best.margin) != (labeler.name, margin):
        best = None
    formats = {name: run.format for name, run in zip(systems, runs, strict=True) if run.format is not None}
    return evaluate_systems(texts, target, labeler, margin, formats, seed=seed, best=best)
