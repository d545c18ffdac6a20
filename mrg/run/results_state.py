"""Whether the results of a run are still those of its checkpoint: a run that goes on may find a better one."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrg.run.checkpoint_file import META


def fingerprint(checkpoint: Path) -> str:
    """What tells a checkpoint's weights from others, by the check sums that its file holds: none of them is read.

    Args:
        checkpoint: A file, or a folder of one file per rank.

    Returns:
        Hexadecimal; empty where it cannot be read.
    """
    file = checkpoint / META if checkpoint.is_dir() else checkpoint
    try:
        with zipfile.ZipFile(file) as archive:
            # Tensors alone: clocks are pickled beside them.
            rows = [(info.filename.split("/")[-1], info.CRC, info.file_size) for info in archive.infolist()
                    if "/data/" in info.filename]  # fmt: skip
    except (OSError, zipfile.BadZipFile):
        return ""
    if checkpoint.is_dir():  # the weights are beside what all ranks share
        rows += [(path.name, 0, path.stat().st_size) for path in checkpoint.iterdir()]
    return hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()[:16]


def is_outdated(folder: Path, results: Mapping[str, Any]) -> bool:
    """Whether the checkpoint that was tested has been replaced since.

    Args:
        folder: The run's.
        results: Of results.json; of an older mrg they do not say what was tested, and pass.
    """
    protocol = results.get("protocol") or {}
    tested, checkpoint = protocol.get("fingerprint"), Path(str(protocol.get("checkpoint") or ""))
    if not tested:
        return False
    places = [checkpoint, folder / "checkpoints" / checkpoint.name]  # the second one where the run was moved or copied
    found = {fingerprint(path) for path in places} - {""}
    return bool(found) and tested not in found
