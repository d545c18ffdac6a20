"""A cache of resized images on disk, so that each is read and resized once instead of once per epoch and run.

An entry is a file of uncompressed 8-bit pixels. Its name is a hash of everything they depend on: the image's path, size
and times, and the settings. A changed image or setting is another entry. Entries are never removed.
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

_HEADER = struct.Struct("<8s4I")  # magic bytes, height, width, channels (0: grey), CRC-32 of the shape and the pixels
_MARK = b"mrgpix2\n"
_TICK = 50_000_000
"""Nanoseconds within which two changes of a file may have the same time."""


class PixelCache:
    """A folder of cached images, which workers, ranks and runs may share.

    Args:
        folder: Folder of the cache; created if it does not exist.

    Raises:
        UserError: If the folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder, "model.init_args.pixel_cache")

    def get(self, image: Path, settings: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the pixels of an image from the cache, or make and cache them.

        Args:
            image: Image file.
            settings: Everything else on which the pixels depend.
            make: Makes the pixels, (H, W) or (H, W, 3) uint8.

        Raises:
            ImageReadError: If the file does not exist, or `make` raises it.
            UserError: If the entry cannot be written.
        """
        try:
            state = _state(image)
        except OSError:
            return make()  # raises the error
        key = hashlib.sha256(f"{state} {settings}".encode()).hexdigest()
        file = self.folder / key[:2] / key[2:]
        pixels = _load(file)
        if pixels is None:
            pixels = make()
            # A file that is still being written may change again within the resolution of its times.
            if time.time_ns() - state[-1] > _TICK and _state(image) == state:
                _save(file, pixels)
        return pixels


def _state(image: Path) -> tuple[str, int, int, int]:
    """Path, size, and times of the last change of content and of status.

    Programs that copy files set the time of the content, but cannot set that of the status.
    """
    status = image.stat()
    return str(image.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _load(file: Path) -> np.ndarray | None:
    """The pixels of an entry; None if it is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if len(content) < _HEADER.size:
        return None
    mark, height, width, channels, checksum = _HEADER.unpack_from(content)
    body = memoryview(content)[_HEADER.size :]
    if mark != _MARK or len(body) != height * width * max(1, channels):
        return None
    if _checksum(body, height, width, channels) != checksum:
        return None
    return np.frombuffer(body, dtype=np.uint8).reshape((height, width, channels) if channels else (height, width))


def _checksum(body: bytes | memoryview, *shape: int) -> int:
    return zlib.crc32(body, zlib.crc32(repr(shape).encode()))


def _save(file: Path, pixels: np.ndarray) -> None:
    # Workers may write the same entry at the same time: each writes its own file, and the last one replaces the others.
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    body = np.ascontiguousarray(pixels).tobytes()
    shape = (*pixels.shape[:2], pixels.shape[2] if pixels.ndim == 3 else 0)
    try:
        file.parent.mkdir(exist_ok=True)
        temporary.write_bytes(_HEADER.pack(_MARK, *shape, _checksum(body, *shape)) + body)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"The pixel cache {file.parents[1]} cannot be written ({error.strerror}): free disk space, or set "
            "model.init_args.pixel_cache to ''."
        ) from error
