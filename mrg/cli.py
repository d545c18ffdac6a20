"""The command line, `python -m mrg COMMAND`: usage, dispatch, and how errors are printed.

Commands of their own are dispatched before Lightning is imported. The others are Lightning's, with a run folder around
them: `<runs>/<name>/` contains config.yaml, metrics.csv, index.html, checkpoints/, policy/, predictions.jsonl,
results.json, gallery.html and, from `predict`, predict.jsonl.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import mrg
from mrg.commands import LIGHTNING
from mrg.commands.configs import resolve_all
from mrg.errors import RunError, UserError, find_ours, nearest, print_error
from mrg.log import configure, log, tolerant_streams

USAGE = """python -m mrg COMMAND [RUN] [--config FILE] [--KEY VALUE ...] [--traceback]

  demo      train on synthetic images with SFT, then GRPO, and compare both: offline, on a CPU, in minutes
  fit       train the model that --config describes; all output is written to <runs>/<name>/
  runs      list the runs: state, step, best score, age
  validate  `validate RUN` scores the best checkpoint of a run on the validation split
  test      `test RUN` scores it on the test split, next to baselines
  predict   `predict RUN` writes reports without scoring them; `predict RUN --images FILE ...`, for your own images
  compare   `compare RUN RUN` compares two tested runs, or files of reports: paired differences, and a page
  gallery   `gallery RUN` writes the page of all studies; `gallery FILE ...`, of reports by any models
  page      `page RUN` rebuilds the page of a run, <runs>/<name>/index.html
  ablate    train variants of a configuration over several seeds: one table, one figure
  export    `export RUN` writes the policy of a run, merged or as an adapter, for transformers, peft or vLLM
  data      `data check` inspects the data that --config describes: counts, images, leakage, findings
  audit     what the reward that --config describes pays to reports that ignore the image: its cheapest exploit
  size      estimate the GPU memory of the run that --config describes, and what to change if it does not fit
  configs   list the configurations that come with mrg (`--config iu` uses one by name), or copy one to edit it

RUN is the name of a run in --runs (default: runs), or its folder; without RUN and --config, it is the latest run.
`python -m mrg fit --help` lists every key. `--traceback` prints the traceback of an error above its one-line message.
`python -m mrg --version` prints the version."""

OWN = {
    "demo": "mrg.commands.demo",
    "compare": "mrg.commands.compare",
    "gallery": "mrg.commands.gallery",
    "page": "mrg.commands.page",
    "ablate": "mrg.commands.ablate.command",
    "data": "mrg.commands.data",
    "audit": "mrg.commands.audit",
    "size": "mrg.commands.size.command",
    "configs": "mrg.commands.configs",
    "runs": "mrg.commands.runs",
}
"""Command -> module whose `main` takes the remaining arguments."""

CLOSED = 141
"""Exit code after the reader of the output has left, as in a shell: 128 plus the number of the signal."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell: 128 plus the number of the signal."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. The exit code is 2 after a user's mistake and 1 after any other failure."""
    argv = list(sys.argv[1:] if args is None else args)
    with_traceback = "--traceback" in argv or sys.flags.dev_mode
    argv = [word for word in argv if word != "--traceback"]
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {USAGE}")
        raise SystemExit(0 if argv else 2)
    if argv[0] == "--version":
        print(f"mrg {mrg.__version__}")
        return
    configure()
    with tolerant_streams() as output:
        try:
            _dispatch(argv)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except Exception as error:
            ours = find_ours(error)
            if ours is None:
                raise
            print_error(error, with_traceback)
            raise SystemExit(1 if isinstance(ours, RunError) else 2) from None
    if argv[0] in OWN and output is not None and output.problem is not None:  # what it was asked for was not written
        raise SystemExit(CLOSED if isinstance(output.problem, BrokenPipeError) else 1)


def _dispatch(argv: list[str]) -> None:
    argv = resolve_all(argv)
    if argv[0] in OWN:
        importlib.import_module(OWN[argv[0]]).main(argv[1:])
        return
    commands = (*LIGHTNING, *OWN)
    if argv[0] not in commands and not argv[0].startswith("-"):
        raise UserError(
            f"There is no command '{argv[0]}'{nearest(argv[0], commands) or '.'} Commands: {', '.join(commands)}."
        )
    if argv[0] in LIGHTNING:
        argv = _with_run(argv[0], argv[1:])
    from mrg.commands.lightning import run

    run(argv)


def _with_run(command: str, options: list[str]) -> list[str]:
    """Arguments in which RUN, `--name` or nothing, for the latest run, has become the configuration of that run."""
    word = options.pop(0) if options and not options[0].startswith("-") else ""
    name, runs = _value(options, "--name"), Path(_value(options, "--runs") or "runs")
    if word and command == "fit":
        raise UserError(f"`fit` trains what a configuration describes: pass --config {word}.")
    if word and name:
        raise UserError(f"RUN ({word}) and --name {name} are mutually exclusive: both name a run.")
    whole = ("-c", "-h", "--help", "--model", "--model.class_path")  # a configuration of its own, or none
    is_whole = any(option.partition("=")[0] in whole or option.startswith("--config") for option in options)
    if command == "predict" and any(option.partition("=")[0] == "--images" for option in options):
        from mrg.commands.predict_images import with_images

        options = with_images(options)
    if command == "fit" or (is_whole and not word):
        return [command, *options]
    from mrg.run.find import find_run, latest_run, named_run

    folder = find_run(word, runs) if word else named_run(runs, name) if name else latest_run(runs)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} has no config.yaml, so `{command}` cannot know its model and data: pass --config.")
    log.info(f"{'Run' if word or name else 'Latest run'}: {folder}")
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    # The options come after the configuration, which they change, and before the place, which they named.
    place = [f"--runs={folder.parent}", f"--name={folder.name}"]
    return [command, f"--config={folder / 'config.yaml'}", *options, *place]


def _value(argv: Sequence[str], option: str) -> str:
    """Last value of an option, as `--name x` or `--name=x`; empty if it is not given."""
    value = ""
    for word, after in pairwise([*argv, ""]):
        key, is_set, own = word.partition("=")
        if key == option:
            value = own if is_set else after
    return value
