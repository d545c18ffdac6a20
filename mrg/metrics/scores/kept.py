"""Values of reports that have been scored, on disk, so that an interrupted command loses none of them."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrg.files import append_lines, count_lines, cut_lines
from mrg.log import log
from mrg.metrics.imports import name_of
from mrg.metrics.labels import Labeler, run_labeler

SECONDS = 5.0
"""Minimum time between two notes of progress."""


def digest(*parts: Any) -> str:
    """A hash of values of JSON, 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def stamp(path: Path) -> list[Any]:
    """Size and time of change of a file, or of the files directly in a folder; empty if there is none."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def source_digest(*paths: Path) -> str:
    """Hash of Python files, and of those in folders: values of another version of the code are computed again."""
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return digest(*(file.read_text(encoding="utf-8") for file in files))


class KeptValues:
    """A file of JSON lines with the values of texts or of pairs of texts.

    A line holds a block: the digest of the settings, the digest of each key, and its values. It is on disk before the
    next block starts; a line that a crash has truncated is removed.

    Args:
        path: The file; it is created with the first values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, dict[str, list[float]]] = {}
        self.earlier: dict[str, frozenset[str]] = {}
        if not path.is_file():
            return
        cut_lines(path, count_lines(path))
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                values = dict(zip(row["keys"], row["values"], strict=True))
                self.known.setdefault(row["settings"], {}).update(values)
            except (ValueError, LookupError, TypeError, AttributeError):
                log.warning(f"{path} has a line that holds no values; they are computed again.")
        self.earlier = {settings: frozenset(values) for settings, values in self.known.items()}

    def fill(
        self,
        name: str,
        settings: Mapping[str, Any],
        keys: Sequence[str],
        compute: Callable[[list[int]], Any],
        block: int = 0,
    ) -> np.ndarray:
        """Values of N keys: those that are known, and those that are computed now, once for equal keys.

        Args:
            name: Name of the score in notes.
            settings: What the values depend on besides the keys; empty if they are not to be kept.
            keys: N digests.
            compute: Function from M positions in `keys` to their values (M, K); nan, which is not kept, for none.
            block: Number of keys per call of `compute`, and thus per line; 0 for all in one.

        Returns:
            (N, K) float64.
        """
        known = dict(self.known.get(digest(settings), {})) if settings else {}
        places = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        new = sorted(places.values())
        earlier = self.earlier.get(digest(settings), ()) if settings else ()
        if number := sum(key in earlier for key in keys):
            log.info(f"{name}: {number:,} of {len(keys):,} are known from {self.path}.")
        told = time.monotonic()
        size = block or max(1, len(new))
        for start in range(0, len(new), size):
            part = new[start : start + size]
            values = np.asarray(compute(part), dtype=np.float64).reshape(len(part), -1)
            rows = {keys[i]: row.tolist() for i, row in zip(part, values, strict=True)}
            known |= rows
            finished = {key: row for key, row in rows.items() if all(map(math.isfinite, row))}
            if settings and finished:
                line = {"settings": digest(settings), "score": name, "keys": list(finished)}
                append_lines(self.path, [line | {"values": list(finished.values())}])
                self.known.setdefault(digest(settings), {}).update(finished)
            done = start + len(part)
            if done < len(new) and time.monotonic() - told >= SECONDS:
                told = time.monotonic()
                log.info(f"{name}: {done:,} of {len(new):,}.")
        return np.array([known[key] for key in keys], dtype=np.float64).reshape(len(keys), -1)


class KeptLabels(Labeler):
    """A labeler whose labels are kept.

    Args:
        labeler: Labeler, or any callable of its form.
        kept: File of the labels.
        settings: What the labels depend on; empty for a labeler whose code is not known, whose labels are not kept.
        block: Number of reports that are labeled at a time.
    """

    def __init__(self, labeler: Any, kept: KeptValues, settings: Mapping[str, Any], block: int = 500) -> None:
        self.labeler, self.kept, self.settings, self.block = labeler, kept, settings, block
        self.name = name_of(labeler)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports."""

        def compute(places: list[int]) -> np.ndarray:
            labels: np.ndarray = run_labeler(self.labeler, [texts[i] for i in places]).cpu().numpy()
            return labels

        keys = [digest(text) for text in texts]
        return torch.from_numpy(self.kept.fill("labels", self.settings, keys, compute, self.block)).long()

    def __getattr__(self, name: str) -> Any:
        if name == "labeler":  # a copy that has no attributes yet
            raise AttributeError(name)
        return getattr(self.labeler, name)  # such as `findings`
