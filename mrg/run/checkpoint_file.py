"""One checkpoint on disk: whether it is intact, whether it is one of ours, and the fingerprint of its weights."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mrg.errors import UserError

META = "meta.pt"
"""In a sharded checkpoint, a folder with one file per rank, the file that all ranks share."""


class DamagedCheckpointError(UserError):
    """A checkpoint is not what was written."""


class ForeignCheckpointError(UserError):
    """A file is intact, but not a checkpoint of ours."""


def _file(checkpoint: Path) -> Path:
    return checkpoint / META if checkpoint.is_dir() else checkpoint


def check_whole(path: Path) -> None:
    """Check a file of torch by its own checksums.

    Args:
        path: Checkpoint: a file, or a folder with one file per rank.

    Raises:
        DamagedCheckpointError: If it is truncated or changed, or no such file.
    """
    file = _file(path)
    try:
        with zipfile.ZipFile(file) as archive:
            if (bad := archive.testzip()) is not None:
                raise DamagedCheckpointError(f"{path} is damaged in {bad}.")
    except DamagedCheckpointError:
        raise
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # damaged bytes also look like encryption, other compression or other text
        raise DamagedCheckpointError(f"{path} is damaged or no checkpoint ({_diagnosis(file)}).") from error


def _diagnosis(file: Path) -> str:
    with file.open("rb") as content:
        begin = content.read(4)
    if not begin:
        return "the file is empty"
    return "the file is truncated" if begin == b"PK\x03\x04" else "the file is not in torch's zip format"


def check_ours(path: Path) -> None:
    """Check that an intact file was written by `python -m mrg fit`; its weights are not read.

    Raises:
        ForeignCheckpointError: If it was not; the message describes its content.
    """
    try:
        content = torch.load(_file(path), map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:
        # Also an archive of something else, and a pickle whose objects would need code to be run.
        raise ForeignCheckpointError(_message(path, "torch cannot read it without running code")) from error
    if not isinstance(content, dict) or "identity" not in content:
        raise ForeignCheckpointError(_message(path, _contents(content)))


def _contents(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it contains a {type(content).__name__}"
    if "pytorch-lightning_version" in content:
        return "it belongs to another Lightning project"
    names = [repr(name) for name in content]
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return f"it contains only weights: {some}"
    return f"it contains {some or 'nothing'}"


def _message(path: Path, reason: str) -> str:
    return (
        f"{path} is not a checkpoint of `python -m mrg fit`: {reason}. Expected a file such as "
        "runs/NAME/checkpoints/best.ckpt."
    )


def fingerprint(checkpoint: Path) -> str:
    """Identify a checkpoint's weights by the checksums stored in its file; the weights are not read.

    Args:
        checkpoint: A file, or a folder with one file per rank.

    Returns:
        Hexadecimal digits; empty if it cannot be read.
    """
    try:
        with zipfile.ZipFile(_file(checkpoint)) as archive:
            # Only tensors: the rest of the archive contains times.
            rows = [(info.filename.split("/")[-1], info.CRC, info.file_size) for info in archive.infolist()
                    if "/data/" in info.filename]  # fmt: skip
    except Exception:  # as in `check_whole`
        return ""
    if checkpoint.is_dir():  # the weights are in the files of the ranks
        rows += [(path.name, 0, path.stat().st_size) for path in checkpoint.iterdir()]
    return hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()[:16]


def policy_fingerprint(folder: Path, weights: bool = True) -> str:
    """Identify a policy on disk by the content of its files; a rewritten copy of the same policy is the same.

    Args:
        folder: Folder of the policy.
        weights: Whether weights count, beside tokenizer, image processor and configuration; they are read as a whole.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and (weights or path.suffix not in (".safetensors", ".bin", ".pt")):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def is_outdated(folder: Path, results: Mapping[str, Any]) -> bool:
    """Return whether the checkpoint that was tested has been replaced since.

    Args:
        folder: Folder of the run.
        results: Content of results.json. Those of older versions do not identify their checkpoint, and pass.
    """
    protocol = results.get("protocol") or {}
    tested, checkpoint = protocol.get("fingerprint"), Path(str(protocol.get("checkpoint") or ""))
    if not tested:
        return False
    places = [checkpoint, folder / "checkpoints" / checkpoint.name]  # the second one if the run was moved or copied
    found = {fingerprint(path) for path in places} - {""}
    return bool(found) and tested not in found
