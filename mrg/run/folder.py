"""What must be true of a run's folder before a command works in it, and room in it for a run that starts anew."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from mrg.errors import UserError
from mrg.run.checkpoints import CheckpointFolder

LOCK = ".lock"
PAGE = "gallery.html"
PREDICT_PAGE = "gallery-predict.html"
WRITTEN = (
    "predictions.jsonl", "predict.jsonl", "images.jsonl", "results.json", "run.json", "index.html", PAGE,
    PREDICT_PAGE, "compare-*.html", "rexrank.json", "*.scores.json", "*.vs.*.json",
)  # fmt: skip
"""Files that tell of a policy of the run; those of `python -m mrg.metrics` are the last ones."""


def latest_run(runs: Path) -> Path:
    """Folder of the run whose best checkpoint is the newest.

    Raises:
        UserError: If there is none.
    """
    found = [path for path in runs.glob("**/checkpoints/best.ckpt") if (path.parents[1] / "config.yaml").is_file()]
    if not found:
        raise UserError(
            f"No run with a checkpoint in {runs.absolute()}: train one first, for example with "
            "`python -m mrg fit --config configs/demo_sft.yaml`."
        )
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]


def check_writable(folder: Path) -> None:
    """Make the folder and a file in it; permissions say too little on network drives and to root.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"Run folder {folder} cannot be written ({error.strerror}): check --runs and --name.") from None


def lock(folder: Path) -> IO[bytes] | None:
    """Keep other processes from training in a run's folder, as long as the file is open or this process lives.

    Two would write over each other's checkpoints and add to the same logs.

    Returns:
        The file that is locked; None where the system or its file system has no such locks.

    Raises:
        UserError: If another process trains there.
    """
    if os.name == "nt":
        return None
    import fcntl

    file = (folder / LOCK).open("ab")
    try:
        # Of the process: it ends with it, however it ends, and a loader's workers do not have it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise UserError(
            f"Another process trains in run folder {folder}: wait for its end, or choose another --name."
        ) from None
    except OSError:
        file.close()
        return None
    atexit.register(_remove_unused, folder, os.getpid())
    return file


def _remove_unused(folder: Path, process: int) -> None:
    """Leave no folder of a run that was refused before it wrote anything."""
    with contextlib.suppress(OSError):
        if os.getpid() == process and [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def check_not_moved(configs: Iterable[Path], folder: Path) -> None:
    """Refuse the configuration of a run's folder that was moved or copied: it names the place where it was.

    Args:
        configs: Files that were given.
        folder: The run's folder, as they and the command line name it.

    Raises:
        UserError: If the last of them lies in another run's folder, and names this one.
    """
    import yaml

    for path in configs:
        own = path.parent
        if path.name != "config.yaml" or not (own / "checkpoints").is_dir() or own.resolve() == folder.resolve():
            continue
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        if Path(str(saved.get("runs")), str(saved.get("name"))).resolve() == folder.resolve():
            raise UserError(
                f"{path} lies in a run's folder but names {folder}, as if it was moved or copied: add "
                f"--runs {own.parent} --name {own.name}."
            )


def make_room(folder: Path, overwrite: bool) -> None:
    """Make room for a run that starts anew: earlier logs are kept under other names; Lightning would delete them.

    Args:
        folder: The run's.
        overwrite: Remove what an earlier run left; a best checkpoint that stayed would pass for the new run's.
    """
    if overwrite:
        CheckpointFolder(folder / "checkpoints").clear()
        for pattern in WRITTEN:
            for file in folder.glob(pattern):
                file.unlink()
        shutil.rmtree(folder / "policy", ignore_errors=True)
    for name in ("metrics.csv", "samples.jsonl"):
        file = folder / name
        if file.is_file():
            number = 1 + sum(1 for _ in folder.glob(f"{file.stem}-*{file.suffix}"))
            file.rename(file.with_name(f"{file.stem}-{number}{file.suffix}"))
