"""The command line: `python -m mrg {fit,validate,test,predict,demo}`.

`demo` is dispatched before Lightning is imported; the others are Lightning's own, with a run folder around them:
`<runs>/<name>/` holds config.yaml, metrics.csv, checkpoints/, policy/, predictions.jsonl and results.json.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import mrg

USAGE = "usage: python -m mrg {fit,validate,test,predict,demo} [--config FILE] [--help] [--version]"


class UserError(ValueError):
    """A mistake that the user can mend; printed as one line, exit code 2."""


def latest_run(runs: Path) -> tuple[Path, Path]:
    """Configuration and best checkpoint of the newest run.

    Raises:
        UserError: If there is none.
    """
    found = sorted(runs.glob("**/checkpoints/best*.ckpt"), key=lambda path: path.stat().st_mtime)
    found = [path for path in found if (path.parent.parent / "config.yaml").is_file()]
    if not found:
        raise UserError(
            f"No run with a checkpoint in {runs}/: train one first, `python -m mrg fit --config configs/iu_sft.yaml`."
        )
    checkpoint = found[-1]
    return checkpoint.parent.parent / "config.yaml", checkpoint


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake prints one line and exits with 2."""
    argv = list(sys.argv[1:] if args is None else args)
    if argv and argv[0] == "--version":
        print(f"mrg {mrg.__version__}")
        return
    try:
        if argv and argv[0] == "demo":
            from mrg.demo import main as demo

            demo(argv[1:])
            return
        _lightning(argv)
    except (ValueError, FileNotFoundError) as error:
        print(f"mrg: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if type(error).__name__ != "RewardError":
            raise
        print(f"mrg: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _lightning(argv: list[str]) -> None:
    quiet()
    from mrg.lightning_cli import run

    if argv == ["test"]:
        config, checkpoint = latest_run(Path("runs"))
        print(f"Testing {checkpoint} with {config}")
        argv = ["test", "--config", str(config), "--ckpt_path", str(checkpoint)]
    run(argv)


def quiet() -> None:
    """Silence what a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*number of training batches.*", ".*treespec.*", ".*isinstance.*"):
        warnings.filterwarnings("ignore", text)
