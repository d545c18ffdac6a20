"""The lock of a run's folder: only one process trains in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from mrg.errors import UserError

LOCK = ".lock"


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
    return file


def is_locked(folder: Path) -> bool | None:
    """Return whether another process trains in a run's folder; None if that cannot be known.

    It must not be called by a process that itself trains there, whose lock it would release.
    """
    if os.name == "nt":
        return None
    import fcntl

    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except (BlockingIOError, PermissionError):
        return True if os.access(folder / LOCK, os.R_OK) else None
    except OSError:
        return None
