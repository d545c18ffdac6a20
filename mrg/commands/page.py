"""`python -m mrg page RUN ...`: the page of a run, made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrg.commands.arguments import OneLineParser
from mrg.run.find import path_or_run


def main(args: Sequence[str]) -> None:
    """Parse the options and write the pages."""
    parser = OneLineParser("page", "Write index.html from the files of a run's folder.")
    parser.add_argument("paths", metavar="RUN", nargs="+", help="name or folder of a run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder in which runs are found by name "
        "(default: %(default)s)")  # fmt: skip
    options = parser.parse_args(list(args))
    from mrg.pages.run import write_run_page

    for path in options.paths:
        print(write_run_page(path_or_run(path, options.runs)))
