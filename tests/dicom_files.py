"""DICOM files with given pixels and elements, by pydicom's own writer."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from mrg.datamodules.study import View

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ComputedRadiographyImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

RAMP = np.array([[0, 1, 2, 1000], [2048, 3000, 4094, 4095]], dtype=np.uint16)


def write(path: Path, pixels: np.ndarray | bytes, syntax: str = ExplicitVRLittleEndian, **elements) -> Path:
    """A radiograph of 16 bits, 12 of them stored, with these pixels and elements."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    data = FileDataset(None, {}, b"\0" * 128, meta, is_implicit_VR=implicit, is_little_endian=little)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality = "CR"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    if isinstance(pixels, np.ndarray):
        data.Rows, data.Columns = pixels.shape[:2]
        if syntax == ExplicitVRBigEndian:
            pixels = pixels.astype(pixels.dtype.newbyteorder(">"))
        pixels = pixels.tobytes()
    data.PixelData = pixels
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data["PixelData"].VR = "OB" if data.BitsAllocated == 8 or meta.TransferSyntaxUID.is_encapsulated else "OW"
        data.save_as(path, enforce_file_format=True)
    return path


def shown(path: Path) -> list[list[int]]:
    image = View(path).read()
    assert image.mode == "L"
    assert View(path).load().mode == "RGB"
    return np.asarray(image).tolist()
