"""DICOM files as displayed by a viewer: modality LUT, VOI LUT or window, MONOCHROME1 inverted, 8 bits.

Choices where the standard (PS3.3 C.7.6.3, C.11.1, C.11.2) leaves one or files violate it: a VOI LUT takes precedence
over windows, and the first of several is used; a window without width is ignored; without either, values of more than 8
bits are stretched from their minimum to their maximum without padding; padding is black in MONOCHROME1 and 2; pixels
that are not square are resized. Nothing is flipped or rotated, whatever the patient's orientation.
Requires the extra `dicom`: pydicom, and GDCM for compressed files, which runs in another process (`decoder.py`).
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mrg.datamodules.errors import MAX_PIXELS, DecoderMissingError, ImageReadError, too_large
from mrg.datamodules.images.decoder import decode
from mrg.errors import UserError, install

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_INSTALL = install("dicom")
_NOT_FRAME_HEADERS = (0xC4, 0xC8, 0xCC)  # among the JPEG markers C0 to CF


def read_dicom(path: Path) -> Image.Image:
    """Read a DICOM file as mode `L`, or as `RGB` if it is in colour.

    Raises:
        DecoderMissingError: If pydicom, or the decoder of the file's compression, is not installed.
        ImageReadError: If the file has no pixels, several frames, more than `MAX_PIXELS` pixels, or cannot be decoded.
    """
    try:
        import pydicom
    except ImportError:
        raise DecoderMissingError(f"Image {path} is DICOM, which needs pydicom: {_INSTALL}") from None
    try:
        # Many files have values that violate the standard.
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            data = _read(path)
            _check(data, path)
            return _square(_render(data, path), data)
    except ImageReadError:
        raise
    # No list of the errors that parsers of many formats raise for damaged bytes would be complete.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageReadError(f"Image {path} is DICOM that cannot be read ({reason[:200]}); copy it again.") from None


def _read(path: Path) -> Any:
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with path.open("rb") as file:
        has_preamble = file.read(132)[128:] == b"DICM"
    if has_preamble and read_file_meta_info(path).get("TransferSyntaxUID") == _DEFLATED:
        # It would be inflated completely before its size is known.
        raise ImageReadError(f"Image {path} is deflated DICOM, which is not read; convert it, for example by dcmconv.")
    data = dcmread(path, force=True)
    if data.file_meta.get("TransferSyntaxUID") is None:
        implicit, little = data.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return data


def _check(data: Any, path: Path) -> None:
    """Check in the header that the image can be decoded."""
    if "PixelData" not in data:
        modality = data.get("Modality") or "unknown"
        raise ImageReadError(f"Image {path} is DICOM without pixel data (modality {modality}); remove it.")
    lacking = [
        name
        for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation")
        if data.get(name) is None
    ]
    if lacking:
        raise ImageReadError(f"Image {path} is DICOM without {', '.join(lacking)}; copy it again.")
    num_frames = int(data.get("NumberOfFrames") or 1)
    if num_frames != 1:
        raise ImageReadError(f"Image {path} has {num_frames} frames, but one was expected; save a single frame.")
    if int(data.Columns) * int(data.Rows) > MAX_PIXELS:
        raise too_large(path, int(data.Columns), int(data.Rows))
    kind = str(data.PhotometricInterpretation)
    if kind not in GREY + COLOUR:
        known = ", ".join(GREY + COLOUR)
        raise ImageReadError(f"Image {path} has the photometric interpretation {kind!r}, but one of {known} is read.")
    if not 1 <= int(data.BitsStored) <= int(data.BitsAllocated) <= 16:
        raise ImageReadError(
            f"Image {path} has {data.BitsStored} bits stored in {data.BitsAllocated}, but at most 16 are read."
        )
    _check_compression(data, path)


def _check_compression(data: Any, path: Path) -> None:
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder
    from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL, JPEGExtended12Bit

    syntax = data.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageReadError(f"Image {path} has the transfer syntax {syntax.name}, which is not read.") from None
    extended = syntax == JPEGExtended12Bit and int(data.BitsStored) > 8
    if not decoder.is_available or (extended and "pylibjpeg" not in decoder.available_plugins):
        # Formats that GDCM does not read. Note that the licence of pylibjpeg-libjpeg is the GPL.
        others = "pip install pylibjpeg pylibjpeg-libjpeg" if extended else "pip install pylibjpeg pylibjpeg-openjpeg"
        line = others if extended or syntax in (HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL) else _INSTALL
        raise DecoderMissingError(f"Image {path} is compressed ({syntax.name}), which needs a decoder: {line}")
    if syntax.is_encapsulated:
        # Decoders allocate memory by the size in the compressed frame.
        width, height = _frame_size(get_frame(data.PixelData, 0, number_of_frames=1)) or (0, 0)
        if width * height > MAX_PIXELS:
            raise too_large(path, width, height)
        return
    expected = int(data.Rows) * int(data.Columns) * int(data.get("SamplesPerPixel") or 1) * int(data.BitsAllocated) // 8
    if str(data.PhotometricInterpretation) == "YBR_FULL_422":
        expected = expected * 2 // 3
    if len(data.PixelData) < expected:
        raise ImageReadError(
            f"Image {path} is truncated: {len(data.PixelData)} of {expected} bytes of pixel data; copy it again."
        )


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """(width, height) in the header of a JPEG, JPEG-LS or JPEG 2000 stream; None for other streams."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # bare, or behind the boxes of a JP2 file
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        return right - left, bottom - top
    if frame[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(frame):
        if frame[place] != 0xFF:
            return None
        marker = frame[place + 1]
        if (0xC0 <= marker <= 0xCF and marker not in _NOT_FRAME_HEADERS) or marker == 0xF7:
            height, width = struct.unpack_from(">HH", frame, place + 5)
            return width, height
        place += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, place + 2)[0]
    return None


def _render(data: Any, path: Path) -> Image.Image:
    from pydicom.pixels import apply_color_lut, pixel_array

    kind = str(data.PhotometricInterpretation)
    if kind in GREY:
        return Image.fromarray(_grey(data, path))
    pixels = decode(path) if _is_compressed(data) else pixel_array(data)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)
        bits = 8 * pixels.dtype.itemsize
    else:
        bits = int(data.BitsStored)
    if bits > 8:
        pixels = (pixels.astype(np.uint32) * 255 + (2**bits - 1) // 2) // (2**bits - 1)
    return Image.fromarray(pixels.astype(np.uint8))


_SCALING = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")
"""Tags that map stored values to greys."""


def _grey(data: Any, path: Path) -> np.ndarray:
    """(H, W) uint8, by a table of the grey level of each stored value, because there are fewer values than pixels."""
    stored = _stored_values(data, path)
    if stored.ndim != 2:
        raise ImageReadError(f"Image {path} is grey, but has {stored.shape[-1]} samples a pixel; copy it again.")
    lowest, highest = int(stored.min()), int(stored.max())
    values = np.arange(lowest, highest + 1)
    if lowest:
        stored = stored - lowest
    padding = _padding(values, data)

    def real() -> np.ndarray:
        seen = np.zeros(len(values), dtype=bool)
        seen[stored] = True
        return np.asarray(seen & ~padding)

    table = _shown(values, real, data)
    if data.PhotometricInterpretation == "MONOCHROME1":
        table = 1 - table
    elif str(data.get("PresentationLUTShape") or "") == "INVERSE":
        raise UserError(
            "its PresentationLUTShape is INVERSE, which contradicts its PhotometricInterpretation MONOCHROME2"
        )
    greys = np.floor(255 * table + 0.5).astype(np.uint8)
    shown = greys[~padding]
    if len(shown) > 1 and shown.min() == shown.max():
        cause = ", ".join(f"{name} {data[name].value}" for name in _SCALING if data.get(name) is not None)
        raise UserError(f"all of its pixels would have the same grey: {cause or 'its look-up table'}")
    greys[padding] = 0
    return np.take(greys, stored)


def _is_compressed(data: Any) -> bool:
    """Whether another library than pydicom decodes the pixels, which it does in another process."""
    from pydicom.uid import RLELossless

    syntax = data.file_meta.TransferSyntaxUID
    return bool(syntax.is_encapsulated and syntax != RLELossless)


def _stored_values(data: Any, path: Path) -> np.ndarray:
    """(H, W) integers: the stored bits at any position in the allocated bits, with their sign."""
    from pydicom.pixels import pixel_array

    signed, bits = bool(data.get("PixelRepresentation")), int(data.BitsStored)
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        decoded: np.ndarray = decode(path) if _is_compressed(data) else pixel_array(data)
        return decoded.astype(np.int32) if signed else decoded
    raw: np.ndarray = pixel_array(data, correct_unused_bits=False)
    raw = raw.astype(f"u{raw.dtype.itemsize}", copy=False)  # in native byte order
    high = data.get("HighBit")
    shift = max(0, (bits - 1 if high is None else int(high)) + 1 - bits)
    if shift or bits < 8 * raw.dtype.itemsize:
        raw = (raw >> shift) & (2**bits - 1)
    if signed:
        raw = raw.astype(np.int32)
        raw[raw >= 2 ** (bits - 1)] -= 2**bits
    return raw


def _padding(values: np.ndarray, data: Any) -> np.ndarray:
    """(len(values),) bool: stored values that mark padding outside of the image."""
    first = data.get("PixelPaddingValue")
    if first is None:
        return np.zeros(len(values), dtype=bool)
    last = data.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    return np.asarray((values >= low) & (values <= high))


def _shown(values: np.ndarray, real: Callable[[], np.ndarray], data: Any) -> np.ndarray:
    """Map stored values to 0 to 1, before inversion; `real` returns which values occur in the image outside padding."""
    values, has_modality = _modality(values, data)
    if data.get("VOILUTSequence"):
        entries, shown = _look_up(values, data.VOILUTSequence[0], data)
        bits, used = int(data.VOILUTSequence[0].LUTDescriptor[2]), max(1, int(entries.max()).bit_length())
        if used > bits:
            raise UserError(
                f"its VOILUTSequence has entries to {entries.max()}, but LUTDescriptor declares {bits} bits"
            )
        # The descriptor often claims 16 bits for a table that uses 12; a smaller number is meant.
        return np.asarray(shown / (2 ** (used if bits == 16 else bits) - 1))
    window = _window(data)
    if window is not None:
        return _windowed(values, *window, str(data.get("VOILUTFunction") or "LINEAR"))
    if int(data.BitsStored) <= 8 and not has_modality and not data.get("PixelRepresentation"):
        return np.asarray(values / (2 ** int(data.BitsStored) - 1))
    found = values[real()]
    if not len(found) or found.min() == found.max():
        return np.zeros(len(values))
    return np.asarray(np.clip((values - found.min()) / (found.max() - found.min()), 0, 1))


def _modality(values: np.ndarray, data: Any) -> tuple[np.ndarray, bool]:
    """Values in the modality's unit, and whether they differ from the stored ones."""
    if data.get("ModalityLUTSequence"):
        return _look_up(values, data.ModalityLUTSequence[0], data)[1], True
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    slope, intercept = 1.0 if slope is None else float(slope), float(intercept or 0)
    return values * slope + intercept, (slope, intercept) != (1, 0)


def _look_up(values: np.ndarray, item: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """A table's entries, and the values mapped by it; those beyond its ends get its first or last entry.

    Replaces pydicom's `apply_voi`, which overflows for a table from 12 bits to 8.
    """
    number, first, bits = (int(x) for x in item.LUTDescriptor)
    number = number or 2**16
    content = item.LUTData
    if isinstance(content, bytes):
        words = "<u2" if data.original_encoding[1] else ">u2"
        entries = np.frombuffer(content, "u1" if len(content) < 2 * number else words, count=number)
    else:
        entries = np.asarray(content)[:number]
    if not 1 <= bits <= 16 or len(entries) < number:
        raise UserError(f"a look-up table has {len(entries)} entries of {bits} bits where {number} were expected")
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # written as unsigned
    return entries, entries[np.clip(np.rint(values).astype(np.int64) - first, 0, number - 1)].astype(np.float64)


def _window(data: Any) -> tuple[float, float] | None:
    """(center, width) of the first window, or None if there is none."""
    pair = [data.get(name) for name in ("WindowCenter", "WindowWidth")]
    if any(value is None or value == "" for value in pair):
        return None
    center, width = (float(value if isinstance(value, (int, float, str)) else value[0]) for value in pair)
    least = 1 if str(data.get("VOILUTFunction") or "LINEAR") == "LINEAR" else 0
    return (center, width) if width > 0 and width >= least else None


def _windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Map values to 0 to 1 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if function != "LINEAR":
        raise UserError(f"its VOI LUT function is {function!r}")
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _square(image: Image.Image, data: Any) -> Image.Image:
    """Resize an image to square pixels, by PixelAspectRatio or the spacing of rows and columns."""
    for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = data.get(name)
        if value is not None and not isinstance(value, (str, float, int)) and len(value) == 2:
            vertical, horizontal = float(value[0]), float(value[1])
            if vertical <= 0 or horizontal <= 0:
                continue
            ratio = vertical / horizontal
            if abs(ratio - 1) < 0.01:
                return image
            if not 0.1 < ratio < 10:
                raise UserError(f"its pixels are {vertical:g} by {horizontal:g}")
            # The side with larger pixels is enlarged, so that no detail is lost.
            width, height = image.size
            size = (width, round(height * ratio)) if ratio > 1 else (round(width / ratio), height)
            return image.resize(size, Image.Resampling.BICUBIC)
    return image
