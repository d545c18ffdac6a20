"""Errors about data sets, and what their messages share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrg.errors import NotFoundError, UserError

# A file of a few kilobytes can claim billions of pixels. The largest radiographs have about 20 million.
MAX_PIXELS = 64_000_000


class DataError(UserError):
    """The content of a data set cannot be used; the message names the file, the finding and the remedy."""


class DataNotFoundError(NotFoundError):
    """A file or folder of a data set does not exist; the message names the path, the setting and the remedy."""


class ImageReadError(UserError):
    """An image file is missing, truncated, too large or not an image; the message is one line that names the file."""


class TextError(ImageReadError):
    """A text in the prompt contains a special token of the policy; such studies are skipped like unreadable ones."""


class DecoderMissingError(ImageReadError):
    """Reading an image needs an optional package; such images are never skipped. The message names the pip command."""


def first_names(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list, for an error of one line; one with a line break or without letters is quoted."""
    shown = [name if name.strip() and name.isprintable() else repr(name) for name in names[:count]]
    return ", ".join(shown) + (", …" if len(names) > count else "")


def too_large(path: Path, width: int, height: int) -> ImageReadError:
    """The error for an image of more than `MAX_PIXELS` pixels, which must not be decoded."""
    return ImageReadError(
        f"Image {path} has {width} x {height} pixels, but at most {MAX_PIXELS} are read; scale it down first."
    )
