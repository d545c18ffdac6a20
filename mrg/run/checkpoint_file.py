"""Whether a file or a folder is a whole checkpoint of ours, and in one line what it is where it is none."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from mrg.errors import UserError

META = "meta.pt"
"""In a checkpoint of one file per rank, what all ranks share."""


class DamagedCheckpointError(UserError):
    """A checkpoint that is not what was written."""


class ForeignCheckpointError(UserError):
    """A file that is whole, but no checkpoint of ours."""


def check_whole(path: Path) -> None:
    """Check a file of torch by its own check sums.

    Args:
        path: A file, or a folder of one file per rank.

    Raises:
        DamagedCheckpointError: If it is torn or changed, or no such file at all.
    """
    file = path / META if path.is_dir() else path
    try:
        with zipfile.ZipFile(file) as archive:
            if (bad := archive.testzip()) is not None:
                raise DamagedCheckpointError(f"{path} is damaged in {bad}.")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DamagedCheckpointError(f"{path} is damaged or no checkpoint ({_begin_of(file)}).") from error
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({error.strerror or error}).") from error


def _begin_of(file: Path) -> str:
    """What stands where a file of torch should begin."""
    with file.open("rb") as content:
        begin = content.read(4)
    if not begin:
        return "it is empty"
    return "its end is missing" if begin == b"PK\x03\x04" else "it is no file of torch's present format"


def check_ours(path: Path) -> None:
    """Check that a file that is whole was written by `python -m mrg fit`; its weights are not read.

    Raises:
        ForeignCheckpointError: If it was not; the message says what it holds.
    """
    try:
        content = torch.load(path / META if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, KeyError, AttributeError, TypeError, ValueError, EOFError) as error:
        # Also an archive of something else, and a pickle whose objects would need code to be run.
        raise ForeignCheckpointError(_message(path, "torch reads nothing from it without running code")) from error
    if not isinstance(content, dict) or "identity" not in content:
        raise ForeignCheckpointError(_message(path, _contents(content)))


def _contents(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    if "pytorch-lightning_version" in content:
        return "it is another Lightning project's"
    names = [repr(name) for name in content]
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return f"it holds weights alone: {some}"
    return f"it holds {some or 'nothing'}"


def _message(path: Path, reason: str) -> str:
    return (
        f"{path} is no checkpoint of `python -m mrg fit`: {reason}. Expected a file such as "
        "runs/NAME/checkpoints/best.ckpt."
    )
