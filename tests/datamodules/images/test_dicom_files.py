"""Which DICOM files are read: told by content, compressed, damaged, without a decoder."""

import builtins
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.errors import MAX_PIXELS, DecoderMissingError, ImageReadError
from mrg.datamodules.study import View

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from tests.dicom_files import RAMP, shown, write  # noqa: E402


def test_a_file_is_told_by_its_content(tmp_path: Path) -> None:
    assert shown(write(tmp_path / "a.png", RAMP)) == [[0, 0, 0, 62], [128, 187, 255, 255]]
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.dcm")
    assert shown(tmp_path / "b.dcm") == RAMP.astype(np.uint8).tolist()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_file_without_preamble(tmp_path: Path, syntax: str) -> None:
    path = write(tmp_path / "a.dcm", RAMP, syntax)
    whole = path.read_bytes()
    (tmp_path / "b.dcm").write_bytes(whole[132:])  # the meta information remains
    data = pydicom.dcmread(path)
    del data.file_meta
    data.preamble = None
    implicit = syntax == ImplicitVRLittleEndian
    data.save_as(tmp_path / "c.dcm", implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert not (tmp_path / "c.dcm").read_bytes().startswith(b"\0" * 128)
    for name in ("b.dcm", "c.dcm"):
        assert shown(tmp_path / name) == shown(path)


def gradient(dtype: type = np.uint16) -> np.ndarray:
    rows, columns = np.mgrid[:32, :48]
    return (rows * 48 + columns).astype(dtype)


def test_rle_loses_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", gradient())
    expected = shown(path)
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    data.save_as(tmp_path / "b.dcm")
    assert shown(tmp_path / "b.dcm") == expected


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_compression_changes_no_pixel(tmp_path: Path, kind: str, signed: bool) -> None:
    gdcm = pytest.importorskip("gdcm", reason="needs the extra dicom")
    pixels = gradient(np.int16) - 700 if signed else gradient()
    settings = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": int(signed)}
    path = write(tmp_path / "a.dcm", pixels, WindowCenter=0 if signed else 700, WindowWidth=1000, **settings)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "b.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "b.dcm").file_meta.TransferSyntaxUID.is_compressed
    assert shown(tmp_path / "b.dcm") == shown(path)


def test_jpeg_baseline(tmp_path: Path) -> None:
    import io

    smooth = (gradient() // 6).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "jpeg", quality=95)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Rows": 32, "Columns": 48}
    path = write(tmp_path / "a.dcm", encapsulate([buffer.getvalue()]), JPEGBaseline8Bit, **eight)
    assert np.abs(np.asarray(shown(path)) - smooth).max() <= 3


# Bundled with pydicom's wheel: a file, and another one that shows the same.
SAME = [
    ("MR_small_implicit.dcm", "MR_small.dcm"),
    ("MR_small_bigendian.dcm", "MR_small.dcm"),
    ("MR_small_RLE.dcm", "MR_small.dcm"),
    ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
    ("SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm"),
    ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),
    ("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle.dcm"),
]


def bundled(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this release of pydicom does not bring {name}")
    return Path(path)


@pytest.mark.parametrize(("name", "other"), SAME)
def test_files_of_other_programs_show_the_same(name: str, other: str) -> None:
    pytest.importorskip("gdcm", reason="needs the extra dicom")
    one, two = (np.asarray(View(bundled(x)).read()).astype(int) for x in (name, other))
    assert one.shape == two.shape
    assert np.abs(one - two).max() <= (0 if name.startswith("MR") else 6)  # of 255, at edges of colour


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"PixelData": None}, r"is DICOM without pixel data \(modality CR\); remove it\."),
        ({"NumberOfFrames": 2}, r"has 2 frames, but one was expected"),
        ({"Rows": 8001, "Columns": 8000}, rf"has 8000 x 8001 pixels, but at most {MAX_PIXELS} are read"),
        ({"Rows": 65535, "Columns": 65535}, r"at most 64000000 are read"),
        ({"PhotometricInterpretation": "HSV"}, r"photometric interpretation 'HSV', but one of MONOCHROME1,"),
        ({"BitsStored": 17}, r"has 17 bits stored in 16"),
        ({"Rows": None}, r"is DICOM without Rows; copy it again\."),
        ({"Rows": 3}, r"is truncated: 16 of 24 bytes of pixel data; copy it again\."),
        ({"VOILUTFunction": "CUBIC", "WindowCenter": 1, "WindowWidth": 9}, r"VOI LUT function is 'CUBIC'"),
        ({"PixelSpacing": [0.1, 3]}, r"its pixels are 0\.1 by 3"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(tmp_path: Path, elements: dict, message: str) -> None:
    path = write(tmp_path / "a.dcm", RAMP)
    data = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in elements.items():
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)
        data.save_as(path)
    with pytest.raises(ImageReadError, match=message) as error:
        View(path).read()
    assert "a.dcm" in str(error.value)
    assert "\n" not in str(error.value)


def test_deflated_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, DeflatedExplicitVRLittleEndian)
    with pytest.raises(ImageReadError, match="is deflated DICOM, which is not read"):
        View(path).read()


def test_a_truncated_file_never_passes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", gradient())
    whole, messages = path.read_bytes(), []
    for cut in range(132, len(whole), 61):
        path.write_bytes(whole[:cut])
        with pytest.raises(ImageReadError) as error:
            View(path).read()
        messages.append(str(error.value))
    assert any("truncated" in message for message in messages)
    assert all("a.dcm" in message and "\n" not in message for message in messages)


def test_damaged_bytes_are_never_another_kind_of_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.dcm", RAMP, WindowCenter=1000, WindowWidth=101)
    whole, messages = np.frombuffer(path.read_bytes(), dtype=np.uint8), []
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(132, len(whole), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            assert View(path).read().mode in ("L", "RGB")
        except ImageReadError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert not any("\n" in message for message in messages)


def jpeg_header(width: int, height: int) -> bytes:
    return b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0\xff\xd9"


def jpeg2000_header(width: int, height: int) -> bytes:
    return b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, width, height, 0, 0) + bytes(30)


@pytest.mark.parametrize(("make", "syntax"), [(jpeg_header, JPEGBaseline8Bit), (jpeg2000_header, JPEG2000Lossless)])
def test_a_frame_that_claims_more_than_its_header_is_refused(tmp_path: Path, make, syntax: str) -> None:
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Rows": 2, "Columns": 2}
    path = write(tmp_path / "a.dcm", encapsulate([make(60000, 50000)]), syntax, **eight)
    with pytest.raises(ImageReadError, match="has 60000 x 50000 pixels, but at most 64000000 are read"):
        View(path).read()


def test_without_pydicom_the_message_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.dcm", RAMP)
    original = builtins.__import__

    def refuse(name: str, *args, **kwargs):
        if name == "pydicom":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        DecoderMissingError, match=r"a\.dcm is DICOM, which needs pydicom: pip install -e '\.\[dicom\]' in the checkout"
    ):
        View(path).read()


@pytest.mark.parametrize(
    ("syntax", "line"),
    [
        (JPEG2000Lossless, r"pip install -e '\.\[dicom\]' in the checkout$"),
        (pydicom.uid.HTJ2KLossless, "pip install pylibjpeg pylibjpeg-openjpeg$"),
        (JPEGExtended12Bit, "pip install pylibjpeg pylibjpeg-libjpeg$"),
    ],
)
def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, line: str) -> None:
    decoder = pydicom.pixels.get_decoder(syntax)
    monkeypatch.setattr(decoder, "_available", {})
    path = write(tmp_path / "a.dcm", encapsulate([jpeg_header(4, 2)]), syntax, Rows=2, Columns=4)
    with pytest.raises(DecoderMissingError, match=rf"is compressed \(.*\), which needs a decoder: {line}"):
        View(path).read()
