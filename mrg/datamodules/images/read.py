"""Image files: find them in a folder, and read PNG, JPEG, some other formats of Pillow and DICOM as 8-bit grey or RGB.

Nothing is flipped, cropped or stretched, because left and right matter. The format is detected from the content, not
from the name.
"""

from __future__ import annotations

import functools
import os
import struct
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from mrg.datamodules.errors import MAX_PIXELS, DataNotFoundError, ImageReadError, first_names, too_large
from mrg.datamodules.images.dicom import read_dicom

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".webp", ".pgm")
"""Endings of image files. The last part of another dotted name, such as that of a DICOM UID, belongs to the name."""

_FORMATS = ("PNG", "JPEG", "MPO", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "AVIF", "PPM", "TGA")
"""Formats that Pillow may read. Others hold no radiographs, and have decoders in Python: that of DDS in Pillow 10 never
ends for a truncated file."""

_HEAD_BYTES = 132  # up to the end of DICOM's preamble and prefix
_EXTENSIONS = (".png", ".jpg", ".jpeg")
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFinder:
    """Finds listed images in a folder, also under another extension (.png, .jpg, .jpeg) or letter case.

    Each subfolder is listed once: a system call per image and extension is slow on network disks.

    Args:
        folder: Folder to which image paths are relative.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_found = 0
        self.missing: list[str] = []
        self._listings: dict[str, dict[str, str]] = {}

    def find(self, name: str, *others: str) -> Path:
        """Return the path of an image; if it does not exist, record its name in `missing` and return the listed path.

        Args:
            name: Path as listed.
            *others: Other names under which the image is published, tried in order.
        """
        for path in map(PurePosixPath, (name, *others)):
            listing = self._listing(str(path.parent))
            stem, suffix = split_suffix(path.name)
            spellings = [stem + ending for ending in (suffix, *_EXTENSIONS)]
            candidates = [candidate for spelling in spellings for candidate in (spelling, spelling.lower())]
            found = next((listing[candidate] for candidate in candidates if candidate in listing), None)
            if found is not None:
                self.num_found += 1
                return self.folder / path.parent / found
        self.missing.append(name)
        return self.folder / name

    def check(self, listed_in: str | Path, remedy: str) -> None:
        """Raise an error with the number and the first of the missing images, if there are any.

        Args:
            listed_in: File that lists the images.
            remedy: What to do about it.

        Raises:
            DataNotFoundError: If an image is missing.
        """
        if self.missing:
            raise DataNotFoundError(
                f"{len(self.missing)} of the {self.num_found + len(self.missing)} images listed in {listed_in} are not "
                f"in {self.folder}: {first_names(self.missing)}; {remedy}."
            )

    def _listing(self, parent: str) -> dict[str, str]:
        if parent not in self._listings:
            try:
                with os.scandir(self.folder / parent) as entries:
                    names = sorted(entry.name for entry in entries if entry.is_file())
            except (FileNotFoundError, NotADirectoryError):
                names = []
            # Exact names come last, so that they take precedence over lower-cased ones.
            self._listings[parent] = {name.lower(): name for name in names} | {name: name for name in names}
        return self._listings[parent]


def split_suffix(name: str) -> tuple[str, str]:
    """Split a file name into its stem and its ending from `SUFFIXES`, which may be empty."""
    suffix = PurePosixPath(name).suffix
    return (name.removesuffix(suffix), suffix) if suffix.lower() in SUFFIXES else (name, "")


def read_image(path: Path) -> Image.Image:
    """Read a file as mode `L` if it is grey, otherwise as `RGB`.

    The EXIF orientation is applied, 16 bits are scaled to 8, transparent pixels become black.

    Raises:
        ImageReadError: If the file is missing, cannot be decoded, or has more than `MAX_PIXELS` pixels.
        DecoderMissingError: If it is DICOM and the extra `dicom` is not installed.
    """
    try:
        # Through a handle: given a path, Pillow 13 garbles uncompressed TIFF files that are stored on their side.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about damaged metadata
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            if is_dicom(head):
                return read_dicom(path)
            with Image.open(file, formats=_formats()) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise too_large(path, *image.size)
                image.load()
                return _to_8_bit_modes(_upright(image), path)
    except ImageReadError:
        raise
    except FileNotFoundError:
        raise ImageReadError(f"Image {path} does not exist.") from None
    # No list of the errors that decoders of many formats raise for damaged bytes would be complete.
    except Exception as error:
        raise ImageReadError(_decoding_message(path, error)) from None


@functools.cache
def _formats() -> list[str]:
    """`_FORMATS` without those that this Pillow does not know."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these bytes is DICOM, with or without a preamble.

    Without a preamble it starts with an element of group 2 or 8 (PS3.10, PS3.5), with whose tag and length or type no
    image format starts.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8 or head[:4] == b"\x00" * 4:
        return False
    group, element = struct.unpack("<HH", head[:4])
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    explicit = head[4:6] in (b"UL", b"OB", b"UI", b"CS", b"SH", b"DA", b"LO", b"SQ")
    return explicit or struct.unpack("<I", head[4:8])[0] < 256


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """Image from an array, (H, W) or (H, W, 3) uint8.

    Raises:
        ImageReadError: If the array has another shape or type.
    """
    grey = pixels.ndim == 2
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (grey or colour) or pixels.size == 0:
        raise ImageReadError(
            f"Expected the pixels of a view to be uint8 of shape (H, W) or (H, W, 3), but got {pixels.dtype} of shape "
            f"{pixels.shape}."
        )
    return Image.fromarray(pixels)


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, which fails on intact images with a damaged block.
    method = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    return image if method is None else image.transpose(method)


def _to_8_bit_modes(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image, path)
    if image.has_transparency_data:
        # Black is the background of a radiograph; dropping alpha would reveal the hidden colours of transparent pixels.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Scale grey values of more than 8 bits to 0..255; Pillow alone clips them at 255.

    Detectors store 10, 12 or 14 bits in 16 without recording it. White is therefore the largest value of the smallest
    of these depths that holds the image: with the full 16 bits, a 12-bit radiograph would be nearly black.
    """
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ImageReadError(
            f"Image {path} has values from {values.min()} to {values.max()} (mode {image.mode}), but 0 to 65535 was "
            "expected; convert it to 8 or 16 bits."
        )
    white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
    table = (np.arange(white + 1, dtype=np.uint32) * 255 + white // 2) // white
    return Image.fromarray(table.astype(np.uint8)[values])


def _decoding_message(path: Path, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"Image {path} claims more pixels than the {MAX_PIXELS} that are read; scale it down or remove it."
    if path.is_file() and path.stat().st_size == 0:
        return f"Image {path} is empty (0 bytes); copy it again."
    if "truncated" in str(error).lower():
        return f"Image {path} is truncated at {path.stat().st_size} bytes; copy it again."
    if isinstance(error, UnidentifiedImageError):
        return f"Image {path} is not an image of a known format; replace it by a PNG, JPEG or DICOM file."
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"Image {path} cannot be read ({reason}); copy it again."
