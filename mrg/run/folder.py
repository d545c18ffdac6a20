"""The folder of a run: its files, its lock, the checks before a command uses it, and clearing it for a new run."""

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
from mrg.files import parse_yaml
from mrg.run.checkpoints import CheckpointFolder

LOCK = ".lock"
PAGE = "gallery.html"
PREDICT_PAGE = "gallery-predict.html"
WRITTEN = (
    "predictions.jsonl", "predict.jsonl", "predictions.rank*.jsonl", "predict.rank*.jsonl", "images.jsonl",
    "results.json", "run.json", "index.html", PAGE, PREDICT_PAGE, "compare-*.html", "rexrank.json", "*.scores.json",
    "*.vs.*.json",
)  # fmt: skip
"""Files about a policy of the run; the last ones are those of `python -m mrg.metrics`."""


def latest_run(runs: Path) -> Path:
    """Return the folder of the run with the newest best checkpoint; arms of ablations and parts of demos do not count.

    Raises:
        UserError: If there is no run with a checkpoint.
    """
    found = [path for path in runs.glob("*/checkpoints/best.ckpt") if (path.parents[1] / "config.yaml").is_file()]
    if not found:
        raise UserError(
            f"No run with a checkpoint in {runs.absolute()}: train one first, for example with "
            "`python -m mrg fit --config configs/demo_sft.yaml`."
        )
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]


def named_run(runs: Path, name: str) -> Path:
    """Return the folder of a run.

    Raises:
        UserError: If there is none of this name; the message lists the runs.
    """
    folder = runs / name
    if not (folder / "config.yaml").is_file():
        raise UserError(f"There is no run {name} in {runs}. {list_runs(runs)}")
    return folder


def list_runs(runs: Path, most: int = 20) -> str:
    """A sentence with the names of all runs in a folder and its subfolders, for messages."""
    names = sorted(path.parents[1].relative_to(runs).as_posix() for path in runs.glob("**/checkpoints/*"))
    names = [name for name in dict.fromkeys(names) if (runs / name / "config.yaml").is_file()]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"Runs there: {', '.join(names[:most])}{more}." if names else "There are no runs."


def check_is_of(configs: Iterable[Path], folder: Path) -> None:
    """Refuse the configuration of one run with the checkpoint of another.

    Args:
        configs: Configuration files that were given.
        folder: Folder of the run whose checkpoint is used.

    Raises:
        UserError: If one of them is the config.yaml of another run.
    """
    for path in configs:
        own = path.parent
        if path.name == "config.yaml" and (own / "checkpoints").is_dir() and own.resolve() != folder.resolve():
            raise UserError(
                f"{path} is the configuration of the run {own}, but the checkpoint would be that of {folder}: leave "
                f"out --config to use {folder}, leave out --runs and --name to use {own}, or pass --ckpt_path."
            )


def check_writable(folder: Path) -> None:
    """Check a folder by creating it and a file in it: permissions are not enough on network drives and for root.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"Run folder {folder} cannot be written ({error.strerror}): check --runs and --name.") from None


def lock(folder: Path) -> IO[bytes] | None:
    """Lock a run's folder against other processes that train, until the file is closed or this process ends.

    Two processes would overwrite each other's checkpoints and append to the same logs.

    Returns:
        The locked file; None if the system or the file system has no such locks.

    Raises:
        UserError: If another process trains there.
    """
    if os.name == "nt":
        return None
    import fcntl

    file = (folder / LOCK).open("ab")
    try:
        # Of the process: the system releases it however the process ends, and workers of loaders do not inherit it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise UserError(
            f"Another process is training in {folder}: wait until it has finished, or choose another --name."
        ) from None
    except OSError:
        file.close()
        return None
    atexit.register(_remove_unused, folder, os.getpid())
    return file


def _remove_unused(folder: Path, process: int) -> None:
    """Remove the folder of a run that was refused before it wrote anything."""
    with contextlib.suppress(OSError):
        if os.getpid() == process and [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def check_not_moved(configs: Iterable[Path], folder: Path) -> None:
    """Refuse the configuration of a run whose folder was moved or copied: it names the previous place.

    Args:
        configs: Configuration files that were given.
        folder: Folder of the run according to them and the command line.

    Raises:
        UserError: If one of them lies in another run's folder and names this one.
    """
    for path in configs:
        own = path.parent
        if path.name != "config.yaml" or not (own / "checkpoints").is_dir() or own.resolve() == folder.resolve():
            continue
        saved = parse_yaml(path.read_text(encoding="utf-8"))
        if Path(str(saved.get("runs")), str(saved.get("name"))).resolve() == folder.resolve():
            raise UserError(
                f"{path} names the run folder {folder}, but lies in another one, probably moved or copied: add "
                f"--runs {own.parent} --name {own.name}."
            )


def make_room(folder: Path, overwrite: bool) -> None:
    """Make room for a run that starts from the beginning; logs of an earlier run are renamed.

    Args:
        folder: Folder of the run.
        overwrite: Remove the other files of an earlier run, which would pass for the new run's.
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
