"""Limit on the size of images, checked before they are decoded."""

from __future__ import annotations

from pathlib import Path

from mrg.datamodules.errors import ImageReadError

# A file of a few kilobytes can claim billions of pixels. The largest radiographs have about 20 million.
MAX_PIXELS = 64_000_000


def check_size(path: Path, width: int, height: int) -> None:
    """Check the size of an image before it is decoded.

    Raises:
        ImageReadError: If it has more than `MAX_PIXELS` pixels.
    """
    if width * height > MAX_PIXELS:
        raise ImageReadError(
            f"Image {path} has {width} x {height} pixels, but at most {MAX_PIXELS} are read; scale it down first."
        )
