"""The command line: `python -m mrg {fit,validate,test,predict,export,compare,page,ablate,data,size,demo}`.

`demo`, `compare`, `page`, `ablate`, `data` and `size` are dispatched before Lightning is imported; the others are
Lightning's own, with a run folder around them: `<runs>/<name>/` holds config.yaml, metrics.csv, index.html,
checkpoints/, policy/, predictions.jsonl, results.json, gallery.html and, from `predict`, predict.jsonl.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import mrg
from mrg.commands import LIGHTNING
from mrg.errors import UserError, nearest, one_line

USAGE = """python -m mrg {fit,validate,test,predict,export,compare,page,ablate,data,size,demo}
       [--config FILE] [--KEY VALUE ...]

  demo      SFT, GRPO and one table on drawn images: offline, on a CPU, minutes
  fit       train what --config describes; everything goes to <runs>/<name>/
  validate  score the best checkpoint of a run on the validation split
  test      score it on the test split beside its baselines; alone, `test` takes the latest run
  predict   write reports without scoring them; `predict --images FILE ...` writes them for your own images
  compare   two tested runs: the paired table, and a page that shows study by study where they differ
  page      make a run's page, <runs>/<name>/index.html, anew
  ablate    change one thing at a time, over seeds: one table, one figure
  export    write a run's policy, merged or as an adapter, for transformers, peft or vLLM
  data      `data check` looks through the data that --config describes: counts, images, leakage, findings
  size      will the run that --config describes fit into a GPU's memory, by number of GPUs; what to lower

`python -m mrg fit --help` lists every key; `python -m mrg --version` says which version this is."""

OWN = {
    "demo": "mrg.commands.demo",
    "compare": "mrg.commands.compare",
    "page": "mrg.pages.run",
    "ablate": "mrg.commands.ablate.command",
    "data": "mrg.commands.data_check.command",
    "size": "mrg.commands.size.command",
}
"""Command -> module whose `main` takes the rest of the line."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell: 128 and the number of the signal."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake prints one line and exits with 2, a reward that fails with 1."""
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {USAGE}")
        raise SystemExit(0 if argv else 2)
    if argv[0] == "--version":
        print(f"mrg {mrg.__version__}")
        return
    try:
        _dispatch(argv)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"mrg: {line}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, RuntimeError) else 2) from None


def _dispatch(argv: list[str]) -> None:
    if argv[0] in OWN:
        importlib.import_module(OWN[argv[0]]).main(argv[1:])
        return
    commands = (*LIGHTNING, *OWN)
    if argv[0] not in commands and not argv[0].startswith("-"):
        raise UserError(
            f"There is no command '{argv[0]}'{nearest(argv[0], commands) or '.'} Commands: {', '.join(commands)}."
        )
    names_run = any(word in ("-c", "-h", "--help") or word.startswith("--config") for word in argv)
    own_images = argv[0] == "predict" and any(word.split("=")[0] == "--images" for word in argv)
    if own_images:
        from mrg.commands.predict_images import with_images

        argv = ["predict", *with_images(argv[1:])]
    if argv == ["test"] or ((own_images or argv[0] == "export") and not names_run):
        from mrg.modules.ranks import say
        from mrg.run.folder import latest_run

        folder = latest_run(Path("runs"))
        say(f"Latest run: {folder}")
        run_of = [f"--config={folder / 'config.yaml'}", f"--runs={folder.parent}", f"--name={folder.name}"]
        argv = [argv[0], *run_of, *argv[1:]]
    from mrg.commands.lightning import run

    run(argv)
