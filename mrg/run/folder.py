"""The folder of a run: its files, the checks before a command uses it, and clearing it for a new run."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mrg.errors import UserError
from mrg.files import read_config
from mrg.run.checkpoints import BEST, CheckpointFolder
from mrg.run.lock import LOCK

PAGE = "gallery.html"
PREDICT_PAGE = "gallery-predict.html"
WRITTEN = (
    "predictions.jsonl", "predict.jsonl", "predictions.rank*.jsonl", "predict.rank*.jsonl", "images.jsonl",
    "results.json", "run.json", "index.html", PAGE, PREDICT_PAGE, "compare-*.html", "rexrank.json", "*.scores.json",
    "*.vs.*.json", "calibration.json", "uncertainty.svg",
)  # fmt: skip
"""Files about a policy of the run; the last ones are those of `python -m mrg.metrics`."""


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


def check_inside(path: str, setting: str, outer: str) -> None:
    """Check that a path names a folder inside another one.

    Args:
        path: Path relative to the other folder.
        setting: Setting that names it.
        outer: The other folder, for the message.

    Raises:
        UserError: If it is absolute, empty or `.`, or contains `..`.
    """
    parts = Path(path).parts
    if not parts or ".." in parts or Path(path).is_absolute():
        raise UserError(f"Expected {setting} to be the name of a folder in {outer}, but got {path!r}.")


def make_run_folder(folder: Path, shared: bool) -> None:
    """Create the folder of a run, which only its owner may enter: it contains reports of patients.

    An existing folder keeps its permissions. At exit it is removed if nothing was written to it.

    Args:
        folder: Folder of the run.
        shared: Leave the permissions of a new folder to the umask, so that others may read it.

    Raises:
        UserError: If it cannot be created.
    """
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o777 if shared else 0o700, parents=True, exist_ok=True)  # the mode is not for parents
    except OSError as error:
        raise _unwritable(folder, error) from None
    atexit.register(_remove_unused, folder, os.getpid())


def check_writable(folder: Path) -> None:
    """Check a folder by creating a file in it: permissions are not enough on network drives and for root.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"Run folder {folder} cannot be written ({error.strerror}): check --runs and --name.")


def _remove_unused(folder: Path, process: int) -> None:
    """Remove the folder of a run that was refused before it wrote anything."""
    with contextlib.suppress(OSError):
        if os.getpid() == process and {path.name for path in folder.iterdir()} <= {LOCK}:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def has_progress(folder: Path) -> bool:
    """Return whether a folder contains a run that a new start would overwrite: with a checkpoint, policy or results."""
    if not (folder / "config.yaml").exists():
        return False
    written = (folder / "policy", folder / "predictions.jsonl", folder / "predict.jsonl", folder / "checkpoints" / BEST)
    return any(map(os.path.lexists, written)) or bool(CheckpointFolder(folder / "checkpoints").names())


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
        saved = read_config(path)
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
    for name in ("metrics.csv", "samples.jsonl", "events.jsonl"):
        file = folder / name
        if file.is_file():
            set_aside(file)


def set_aside(file: Path) -> Path:
    """Rename a log such as metrics.csv to metrics-1.csv, or the next free number; return its new path."""
    number = 1 + sum(1 for _ in file.parent.glob(f"{file.stem}-*{file.suffix}"))
    return file.rename(file.with_name(f"{file.stem}-{number}{file.suffix}"))
