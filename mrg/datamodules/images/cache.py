"""Shrunk pixels on disk, so that an image is read and shrunk once and not once per epoch and run.

An entry is a file of the pixels as they are, 8 bits each, under a name that is a hash of all they depend on: the
image's path, size and times, and the settings. An image or a setting that changes is another name. Nothing is removed.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mrg.errors import UserError
from mrg.files import make_folder

_HEADER = struct.Struct("<8s4I")  # mark, height, width, channels (0: grey), checksum of the pixels
_MARK = b"mrgpix1\n"
_TICK = 50_000_000
"""Nanoseconds within which two changes of a file may carry the same time."""


class PixelCache:
    """A folder of entries, which workers, ranks and runs may share.

    Args:
        folder: Where they go; made if it does not exist.

    Raises:
        ValueError: If the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder, "model.init_args.pixel_cache")

    def get(self, image: Path, settings: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The pixels of an image under these settings: from their entry, or made and kept.

        Args:
            image: The file.
            settings: What else the pixels depend on.
            make: Makes them, (H, W) or (H, W, 3) uint8.

        Raises:
            ImageReadError: If the file does not exist, or `make` raises it.
        """
        try:
            state = _state(image)
        except OSError:
            return make()  # says what is wrong
        key = hashlib.sha256(f"{state} {settings}".encode()).hexdigest()
        file = self.folder / key[:2] / key[2:]
        pixels = _load(file)
        if pixels is None:
            pixels = make()
            # A file that is just being written may change once more without a sign.
            if time.time_ns() - state[-1] > _TICK and _state(image) == state:
                _save(file, pixels)
        return pixels


def _state(image: Path) -> tuple[str, int, int, int]:
    """A file's path, size, and times of the last change of its content and of its status.

    The last one cannot be set back, as copying programs set that of the content.
    """
    status = image.stat()
    return str(image.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _load(file: Path) -> np.ndarray | None:
    """The pixels of an entry; None where there is none, or one that is not whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if len(content) < _HEADER.size:
        return None
    mark, height, width, channels, checksum = _HEADER.unpack_from(content)
    body = memoryview(content)[_HEADER.size :]
    if mark != _MARK or len(body) != height * width * max(1, channels) or zlib.crc32(body) != checksum:
        return None
    return np.frombuffer(body, dtype=np.uint8).reshape((height, width, channels) if channels else (height, width))


def _save(file: Path, pixels: np.ndarray) -> None:
    # Workers may make the same entry at once: each writes a file of its own, and the last one stays.
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    body = np.ascontiguousarray(pixels).tobytes()
    channels = pixels.shape[2] if pixels.ndim == 3 else 0
    try:
        file.parent.mkdir(exist_ok=True)
        temporary.write_bytes(_HEADER.pack(_MARK, *pixels.shape[:2], channels, zlib.crc32(body)) + body)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"The pixels of an image cannot be kept in {file.parents[1]} ({error.strerror}): make room, or set "
            "model.init_args.pixel_cache to ''."
        ) from error
