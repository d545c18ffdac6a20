"""The runs in a folder: all of them, the latest one, and the one that a command names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mrg.errors import NotFoundError, UserError, nearest

MARKS = ("config.yaml", "run.json", "metrics.csv", "predictions.jsonl", "checkpoints")
"""Files and folders by any of which the folder of a run is known: some are missing if it is damaged or not trained."""
_DEPTH = 4


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, even of a damaged one."""
    return any(os.path.exists(folder / mark) for mark in MARKS)


def all_runs(runs: Path, depth: int = _DEPTH) -> list[Path]:
    """Return the folders of all runs in a folder and its subfolders, sorted; what cannot be read is left out.

    Args:
        runs: Folder of runs.
        depth: Number of levels of folders to search.
    """
    try:
        folders = sorted(Path(entry) for entry in os.scandir(runs) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    found: list[Path] = []
    for folder in folders:
        found += [folder] if is_run(folder) else all_runs(folder, depth - 1) if depth > 1 else []
    return found


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
        NotFoundError: If there is none of this name; the message suggests a similar name and lists the runs.
    """
    folder = runs / name
    if not os.path.isfile(folder / "config.yaml"):
        raise _no_run(name, runs)
    return folder


def find_run(word: str, runs: Path) -> Path:
    """Return the folder of a run that the command line names.

    Args:
        word: The folder of a run, its path in `runs`, or the last part of this path if no other run has the same.
        runs: Folder of all runs.

    Raises:
        NotFoundError: If there is no such run; the message suggests a similar name and lists the runs.
        UserError: If several runs have this name.
    """
    is_path = word.startswith(("/", "."))
    places = [Path(word)] if is_path else [Path(word), runs / word]
    found = _distinct(folder for folder in places if is_run(folder))
    if not found and not is_path:
        found = [folder for folder in all_runs(runs) if folder.name == word]
    if len(found) > 1:
        paths = [f"./{path}" if str(path) == word else str(path) for path in found]
        raise UserError(f"{len(found)} runs are named {word!r}: {', '.join(paths)}. Pass one of these folders.")
    if found:
        return found[0]
    if os.path.isfile(word):
        hint = f": pass --config {word}" if word.endswith((".yaml", ".yml")) else ""
        raise UserError(f"Expected the name or the folder of a run, but {word} is a file{hint}.")
    if os.path.isdir(word) and (inside := all_runs(Path(word))):
        names = ", ".join(map(str, inside[:5])) + (", …" if len(inside) > 5 else "")
        raise UserError(f"{word} is not the folder of a run, but contains {len(inside)}: {names}. Pass one of them.")
    raise _no_run(word, runs)


def path_or_run(word: str, runs: Path) -> Path:
    """Return an existing or absolute path as it is, and otherwise the folder of the run of this name."""
    path = Path(word)
    return path if path.is_absolute() or (os.path.exists(path) and not is_run(runs / word)) else find_run(word, runs)


def _distinct(folders: Iterable[Path]) -> list[Path]:
    """Folders without those that are another path to one before."""
    return list({folder.resolve(): folder for folder in [*folders][::-1]}.values())[::-1]


def _no_run(word: str, runs: Path) -> NotFoundError:
    paths = [path.relative_to(runs).as_posix() for path in all_runs(runs)]
    similar = nearest(word.removeprefix(f"{runs.as_posix()}/"), [*paths, *(path.rpartition("/")[2] for path in paths)])
    return NotFoundError(f"There is no run {word} in {runs}{similar or '.'} {list_runs(runs)}")


def list_runs(runs: Path, most: int = 20) -> str:
    """A sentence with the names of all runs with a configuration in a folder and its subfolders, for messages."""
    names = [path.relative_to(runs).as_posix() for path in all_runs(runs) if (path / "config.yaml").is_file()]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"Runs there: {', '.join(names[:most])}{more}." if names else "There are no runs."
