"""`python -m mrg gallery RUN|FILE ...`: the gallery of a tested run, or of files of reports by any models."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrg.commands import systems as shared
from mrg.commands.arguments import OneLineParser
from mrg.errors import UserError
from mrg.run.folder import PAGE

if TYPE_CHECKING:
    from mrg.metrics.labels import Labeler
    from mrg.pages.tested_run import TestedRun


def main(args: Sequence[str]) -> None:
    """Parse the options and write the page."""
    parser = OneLineParser(
        "gallery",
        "Write the gallery: images, reference and generated report of each study, with each finding marked "
        "as correct, missed or hallucinated. Several runs or files on the same studies are shown side by side.",
    )
    add = parser.add_argument
    add("paths", metavar="RUN|FILE", type=Path, nargs="+", help="name or folder of a tested run (with "
        "predictions.jsonl), or a file of reports (.jsonl, .json, .csv, .tsv)")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="page to write (default: gallery.html in the folder of a run, "
        "NAME.gallery.html next to a file)")  # fmt: skip
    add("--title", help="title of the page (default: the name of the run or file)")
    add("--max_studies", "--max-studies", type=int, default=5000, help="largest number of studies, those with the "
        "lowest MCCS first (default: %(default)s)")  # fmt: skip
    shared.add_options(parser)
    options = parser.parse_args(list(args))
    options.paths = [shared.as_path(path, options.runs) for path in options.paths]
    print(f"Gallery: {write_gallery(options)}", flush=True)


def write_gallery(options: Namespace) -> Path:
    """Write the page; returns its path.

    Args:
        options: Arguments of `main`.

    Raises:
        UserError: If there are no predictions, the studies or references differ, or a setting is out of range.
    """
    from mrg.pages.gallery import Gallery
    from mrg.pages.report_file import read_system

    if options.max_studies < 1:
        raise UserError(f"Expected --max_studies to be at least 1, but got {options.max_studies}.")
    folder, image_options = shared.image_options(options)
    names = shared.system_names(options.paths)
    page = options.output or _page(options.paths[0], options.redact)
    shared.check_page(page)
    runs = [read_system(path, shared.columns(options)) for path in options.paths]
    systems = _aligned(runs, names)
    margin = shared.choose_margin(runs, names) if options.margin is None else options.margin
    labeler = shared.choose_labeler(runs, names, options.labeler, options.chexbert)
    shared.warn(runs, names, labeler)
    ids = [row["id"] for row in next(iter(systems.values()))]
    results = _tested(runs, labeler, margin)
    if results is not None:  # the page that `test` wrote
        systems = {"model": systems[names[0]]}
    elif "target" in next(iter(systems.values()))[0]:
        results = shared.with_baselines(systems, runs, labeler, margin, options.seed)
    Gallery(
        systems,
        labeler,
        margin,
        **({} if options.redact else shared.find_views(folder, runs, ids)),
        max_views=runs[0].max_views,
        results=results,
        title=options.title or f"{' and '.join(names)}: {len(ids):,} {'study' if len(ids) == 1 else 'studies'}",
        max_studies=options.max_studies,
        image_options=image_options,
        redact=options.redact,
    ).write(page)
    return page


def _page(path: Path, redact: bool) -> Path:
    name = f"{Path(PAGE).stem}-redacted.html" if redact else PAGE
    return path / name if path.is_dir() else path.with_name(f"{path.stem}.{name}")


def _aligned(runs: Sequence[TestedRun], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of all systems in the order of the first one.

    Raises:
        UserError: If the studies or references differ.
    """
    from mrg.metrics.predictions import align, some

    without = [name for run, name in zip(runs, names, strict=True) if "target" not in run.rows[0]]
    if len(without) == len(runs):
        ids: Sequence[str] = [str(row["id"]) for row in runs[0].rows]
        for run, name in zip(runs[1:], names[1:], strict=True):
            if other := sorted(set(ids) ^ {str(row["id"]) for row in run.rows}):
                raise UserError(f"{names[0]} and {name} must have the same studies, but differ in {some(other, 5)}.")
    elif without:
        raise UserError(f"{without[0]} has no references, but other systems have: pass --references FILE.")
    else:
        first = runs[0].predictions()
        ids = first.ids
        for run, name in zip(runs[1:], names[1:], strict=True):
            align(first, run.predictions(), (names[0], name))
    return {name: shared.same_rows(run, ids) for name, run in zip(names, runs, strict=True)}


def _tested(runs: Sequence[TestedRun], labeler: Labeler, margin: float) -> dict[str, Any] | None:
    """Results of the test of a single run, if it was tested with this labeler and margin."""
    results = runs[0].results
    same = (results.get("labeler"), results.get("margin")) == (labeler.name, margin)
    return results if len(runs) == 1 and same and "model" in results.get("systems", {}) else None
