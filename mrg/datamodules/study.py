"""One study: its images, its report, and the text a policy reads and writes for it."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# A file of a few kilobytes can claim billions of pixels. The largest radiographs have about 20 million.
MAX_PIXELS = 64_000_000

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


class ImageReadError(ValueError):
    """An image that is missing, truncated, too large or not an image; the message is one line and names the file."""


@dataclasses.dataclass(frozen=True)
class View:
    """One image of a study.

    Args:
        image: A file, or pixels already in memory as (H, W) or (H, W, 3) uint8.
        position: `"frontal"`, `"lateral"` or, where the source does not say, `""`.
    """

    image: Path | np.ndarray
    position: str = ""

    def load(self) -> Image.Image:
        """Read the image as RGB, turned as its EXIF orientation says, 16 bits scaled to 8, transparency over black.

        Raises:
            ImageReadError: If the file is missing, cannot be decoded completely or has more than `MAX_PIXELS` pixels.
        """
        if isinstance(self.image, np.ndarray):
            return _from_pixels(self.image)
        try:
            # Through a handle: given a path, Pillow 13 garbles uncompressed TIFF files that are stored on their side.
            with self.image.open("rb") as file, Image.open(file) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ImageReadError(
                        f"Image {self.image} has {width} x {height} pixels, but at most {MAX_PIXELS} are read; "
                        "scale it down first."
                    )
                image.load()
                return _to_rgb(_upright(image), self.image)
        except ImageReadError:
            raise
        except FileNotFoundError:
            raise ImageReadError(f"Image {self.image} does not exist.") from None
        except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
            raise ImageReadError(_decoding_message(self.image, error)) from None


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    grey = pixels.ndim == 2
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (grey or colour) or pixels.size == 0:
        raise ImageReadError(
            f"Expected the pixels of a view to be uint8 of shape (H, W) or (H, W, 3), but got {pixels.dtype} of shape "
            f"{pixels.shape}."
        )
    return Image.fromarray(pixels).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, which fails on intact images with a damaged block.
    method = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image, path)
    if image.has_transparency_data:
        # Black is the background of a radiograph; dropping alpha would show whatever colour hides beneath it.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB")


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
    scaled = (values.astype(np.uint32) * 255 + white // 2) // white
    return Image.fromarray(scaled.astype(np.uint8))


def _decoding_message(path: Path, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"Image {path} claims more pixels than the {MAX_PIXELS} that are read; scale it down or remove it."
    if path.is_file() and path.stat().st_size == 0:
        return f"Image {path} is empty (0 bytes); copy it again."
    if "truncated" in str(error).lower():
        return f"Image {path} is truncated at {path.stat().st_size} bytes; copy it again."
    if isinstance(error, UnidentifiedImageError):
        return f"Image {path} is not an image of a known format; replace it by a PNG or JPEG file."
    return f"Image {path} cannot be read ({' '.join(str(error).split())}); copy it again."


@dataclasses.dataclass(frozen=True)
class Study:
    """One examination: an id, its views and its reference report.

    Args:
        id: Unique within the dataset.
        views: One or more images, in the order in which the policy sees them.
        report: The reference report as written; empty only where a study is to be predicted without a reference.
        indication: Why the examination was made; empty where the source does not say.
        patient: Who was examined, where the source says; splits are made, and leakage is looked for, by patient.
        prior: An earlier study of the same patient, where the source has one and it is asked for.
    """

    id: str
    views: tuple[View, ...]
    report: str
    indication: str = ""
    patient: str = ""
    prior: Study | None = None
