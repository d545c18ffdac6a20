"""The folder of a run's checkpoints: atomic writes, a manifest with hashes, and the newest intact checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import IO, Any

import torch

from mrg.files import WriteError, replacing, sync_folder, write_json
from mrg.run.checkpoint_file import DamagedCheckpointError, check_whole

BEST = "best.ckpt"
UNVALIDATED, ROUND, EPOCH = "unvalidated", "round", "epoch"
"""Kinds of boundaries: before a validation that is due; after a round; after the last round of an epoch."""
_NAME = re.compile(r"round-(\d{8})(-unvalidated)?\.ckpt")


def checkpoint_name(number: int, validated: bool = True) -> str:
    """Return the file name of the state after `number` rounds, after or before a validation that is due."""
    return f"round-{number:08d}{'' if validated else '-unvalidated'}.ckpt"


class CheckpointFolder:
    """`<runs>/<name>/checkpoints/`.

    It contains `round-<number>.ckpt` for the last rounds that were saved and for those that were the best ones then,
    `best.ckpt`, a link to the best of all, and `manifest.json`: name -> SHA-256, size, and the best at that time.
    A checkpoint is a file, or a folder with one file per rank if the strategy writes sharded weights.

    Args:
        path: The folder.
        keep: Number of recent checkpoints to keep.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path, self.keep = path, keep

    def names(self) -> list[str]:
        """Return the checkpoints of rounds, newest first; that after a validation is newer than that before it."""
        found = [(match, path.name) for path in self.path.glob("round-*.ckpt") if (match := _NAME.fullmatch(path.name))]
        return [name for _, name in sorted(((int(m[1]), m[2] is None), name) for m, name in found)][::-1]

    def save(self, name: str, checkpoint: dict[str, Any], best: str) -> None:
        """Write a checkpoint, add it to the manifest, and remove checkpoints that need not be kept.

        Args:
            name: File name.
            checkpoint: Content for `torch.save`.
            best: File name of the best checkpoint at this time, which may be this one; empty if there is none.

        Raises:
            WriteError: If it cannot be written; earlier checkpoints are left intact.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"{self.path} cannot be created ({error.strerror}).") from error
        with replacing(self.path / name) as file:
            digest, size = _dump(checkpoint, file)
        self._finish(name, digest, size, best)

    def unfinished(self, name: str) -> Path:
        """Return the folder to which the ranks write their shards before `take`."""
        return self.path / f".{name}.ranks.tmp"

    def take(self, name: str, best: str) -> None:
        """Turn the folder that all ranks have written into a checkpoint; otherwise like `save`."""
        folder = self.unfinished(name)
        try:
            for path in folder.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(folder)
            digest, size = _digest(folder), _size(folder)
            _remove(self.path / name)  # of a round that came before a resume, if any
            folder.rename(self.path / name)
            sync_folder(self.path)
        except OSError as error:
            raise WriteError(f"{self.path / name} cannot be written ({error.strerror}).") from error
        self._finish(name, digest, size, best)

    def _finish(self, name: str, digest: str, size: int, best: str) -> None:
        self._note(name, digest, size, best)
        if best and (self.path / best).exists():
            self.set_best(best)
        self.prune()

    def adopt(self, name: str, best: str) -> None:
        """Add an intact checkpoint and its best one to a manifest that lost them in a crash."""
        for own, its_best in ((best, best), (name, best)):
            path = self.path / own
            if own and path.exists() and own not in self.manifest():
                self._note(own, _digest(path), _size(path), its_best)

    def _note(self, name: str, digest: str, size: int, best: str) -> None:
        entry = {"sha256": digest, "bytes": size, "best": best}
        write_json(self.path / "manifest.json", {**self.manifest(), name: entry})

    def set_best(self, name: str) -> None:
        """Link `best.ckpt` to this checkpoint."""
        temporary = self.path / f".{BEST}.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            if (self.path / BEST).is_dir() and not (self.path / BEST).is_symlink():
                _remove(self.path / BEST)  # a rename does not replace a folder
            try:
                if (self.path / name).is_dir():
                    temporary.symlink_to(name)
                else:
                    os.link(self.path / name, temporary)
            except OSError:  # not every file system has hard links
                shutil.copyfile(self.path / name, temporary)
            # A rename to another name of the same file would do nothing, and leave the temporary one.
            if (self.path / BEST).exists() and os.path.samefile(self.path / BEST, temporary):
                temporary.unlink()
            else:
                temporary.replace(self.path / BEST)
                sync_folder(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise WriteError(f"{self.path / BEST} cannot be written ({error.strerror}).") from error

    def remove_best(self) -> None:
        """Remove `best.ckpt`."""
        _remove(self.path / BEST)

    def prune(self) -> None:
        """Remove all but the recent checkpoints and those that were the best at their time."""
        entries = self.manifest()
        kept = {name: entries[name] for name in self.names() if name in entries}
        kept = dict(list(kept.items())[: self.keep])
        for entry in list(kept.values()):
            if entry["best"] in entries:
                kept[entry["best"]] = entries[entry["best"]]
        if set(kept) != set(entries):
            write_json(self.path / "manifest.json", kept)  # first: an entry without a file would pass for damage
        for name in set(self.names()) - set(kept):
            _remove(self.path / name)

    def clear(self) -> None:
        """Remove all checkpoints."""
        for path in [*self.path.glob("*.ckpt"), *self.path.glob(".*.ckpt.*.tmp")]:
            _remove(path)
        (self.path / "manifest.json").unlink(missing_ok=True)

    def remove_after(self, name: str) -> list[str]:
        """Remove checkpoints newer than this one and unfinished files; returns the names of the former."""
        names = self.names()
        newer = names[: names.index(name)] if name in names else names
        for other in newer:
            _remove(self.path / other)
        for torn in self.path.glob(".*.ckpt.*.tmp"):
            _remove(torn)
        if newer and self.path.exists():
            write_json(self.path / "manifest.json", {k: v for k, v in self.manifest().items() if k not in newer})
        return newer

    def manifest(self) -> dict[str, dict[str, Any]]:
        """Read the manifest; empty if there is none or it is damaged: files are then checked by their own checksums."""
        try:
            entries = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
            return {
                str(name): {"sha256": str(entry["sha256"]), "bytes": int(entry["bytes"]), "best": str(entry["best"])}
                for name, entry in entries.items()
            }
        except (OSError, ValueError, AttributeError, TypeError, KeyError):
            return {}

    def check(self, path: Path) -> None:
        """Check that a checkpoint is what was written.

        Raises:
            DamagedCheckpointError: If it is truncated or changed, or no checkpoint.
        """
        name = path.name
        entries = self.manifest()
        if name == BEST:
            same = [n for n in entries if (self.path / n).exists() and os.path.samefile(path, self.path / n)]
            name = same[0] if same else name
        entry = entries.get(name) if path.resolve().parent == self.path.resolve() else None
        size = _size(path)
        if entry is not None:
            if size != entry["bytes"]:
                raise DamagedCheckpointError(f"{path} is damaged: {size} bytes, but {entry['bytes']} were written.")
            if _digest(path) != entry["sha256"]:
                raise DamagedCheckpointError(f"{path} is damaged: its SHA-256 differs from that in manifest.json.")
            return
        check_whole(path)

    def problem(self, name: str) -> str:
        """Describe in one line what is wrong with a checkpoint of this folder; empty if it is intact."""
        if not (self.path / name).exists():
            return f"{self.path / name} does not exist."
        try:
            self.check(self.path / name)
        except DamagedCheckpointError as error:
            return str(error)
        return ""

    def newest(self) -> tuple[Path | None, list[str]]:
        """Return the newest intact checkpoint, if any, and a line for each newer one that is damaged."""
        problems: list[str] = []
        for name in self.names():
            if not (problem := self.problem(name)):
                return self.path / name, problems
            problems.append(problem)
        return None, problems


class _Hashing:
    """A file that is hashed while it is written.

    torch replaces an error in `write` by one without its reason, so it is kept here and raised later.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash, self.size = hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        self.hash.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: `replacing` flushes the file."""


def _dump(checkpoint: dict[str, Any], file: IO[bytes]) -> tuple[str, int]:
    hashing = _Hashing(file)
    torch.save(checkpoint, hashing)  # type: ignore[arg-type]
    if hashing.error is not None:
        raise hashing.error
    return hashing.hash.hexdigest(), hashing.size


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in path.iterdir()) if path.is_dir() else path.stat().st_size


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    if path.is_dir():
        for part in sorted(path.iterdir()):
            digest.update(f"{part.name} {_digest(part)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
