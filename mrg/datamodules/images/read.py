"""Images from files: PNG, JPEG and what else Pillow reads, and DICOM (`dicom.py`), as 8-bit grey or RGB.

Nothing is flipped, cropped or stretched: left and right matter. A file is told by its content, not by its name.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mrg.errors import UserError

# A file of a few kilobytes can claim billions of pixels. The largest radiographs have about 20 million.
MAX_PIXELS = 64_000_000

HEAD_BYTES = 132
"""What `is_dicom` needs of a file."""

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


class ImageReadError(UserError):
    """An image that is missing, truncated, too large or not an image; the message is one line and names the file."""


class DecoderMissingError(ImageReadError):
    """An image that lacks nothing but an optional package, and is not skipped; the message names the pip line."""


def read_image(path: Path) -> Image.Image:
    """Read a file as mode `L` where it is grey, else `RGB`.

    Turned as its EXIF orientation says, 16 bits scaled to 8, transparency over black.

    Raises:
        ImageReadError: If the file is missing, cannot be decoded completely or has more than `MAX_PIXELS` pixels.
        DecoderMissingError: If it is DICOM and the extra `dicom` is not installed.
    """
    try:
        # Through a handle: given a path, Pillow 13 garbles uncompressed TIFF files that are stored on their side.
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            if is_dicom(head):
                from mrg.datamodules.images.dicom import read_dicom

                return read_dicom(path)
            with Image.open(file) as image:
                check_size(path, *image.size)
                image.load()
                return _to_8_bit_modes(_upright(image), path)
    except ImageReadError:
        raise
    except FileNotFoundError:
        raise ImageReadError(f"Image {path} does not exist.") from None
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ImageReadError(_decoding_message(path, error)) from None


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse an image of more than `MAX_PIXELS` pixels before it is decoded.

    Raises:
        ImageReadError: If it has more.
    """
    if width * height > MAX_PIXELS:
        raise ImageReadError(
            f"Image {path} has {width} x {height} pixels, but at most {MAX_PIXELS} are read; scale it down first."
        )


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with these bytes is DICOM, with or without its preamble.

    Without a preamble a data set begins with an element of group 2 or 8 (PS3.10, PS3.5), whose tag and length or type
    no image format begins with.
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
    """The image of (H, W) or (H, W, 3) uint8.

    Raises:
        ImageReadError: If they are of another kind.
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
        # Black is the background of a radiograph; dropping alpha would show whatever colour hides beneath it.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Scale grey values of more than 8 bits to 0..255; Pillow alone clips them at 255.

    Detectors write 10, 12 or 14 bits into 16 without saying so. White is therefore the largest value of the smallest
    of these depths that holds the image, because the full 16 bits would turn a 12-bit radiograph black.
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
    return f"Image {path} cannot be read ({' '.join(str(error).split())}); copy it again."
