import builtins
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.image import MAX_PIXELS, DecoderMissingError, ImageReadError
from mrg.datamodules.study import View

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
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


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_without_a_window_the_range_of_the_image_is_stretched(tmp_path: Path, syntax: str) -> None:
    # 1000 * 255 / 4095 = 62.27, 2048: 127.53, 3000: 186.81, 4094: 254.94
    assert shown(write(tmp_path / "a.dcm", RAMP, syntax)) == [[0, 0, 0, 62], [128, 187, 255, 255]]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert shown(path) == [[255, 255, 255, 193], [127, 68, 0, 0]]  # 255 - 62.27 = 192.73, 255 - 127.53 = 127.47


def test_8_bits_without_a_window_stay_as_they_are(tmp_path: Path) -> None:
    pixels = np.array([[7, 100], [101, 199]], dtype=np.uint8)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    assert shown(write(tmp_path / "a.dcm", pixels, **eight)) == pixels.tolist()
    inverted = write(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **eight)
    assert shown(inverted) == [[248, 155], [154, 56]]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_any_number_of_bits_stored(tmp_path: Path, bits: int) -> None:
    white = 2**bits - 1
    pixels = np.array([[0, white // 2, white]], dtype=np.uint16)
    path = write(tmp_path / "a.dcm", pixels, BitsStored=bits, HighBit=bits - 1)
    assert shown(path) == [[0, 127, 255]]


def test_bits_outside_of_those_stored_are_not_read(tmp_path: Path) -> None:
    """Old files keep an overlay in them, or store the value in the upper bits."""
    overlay = RAMP | np.array([[0, 0xF000, 0, 0x8000], [0, 0, 0x1000, 0]], dtype=np.uint16)
    expected = shown(write(tmp_path / "a.dcm", RAMP))
    assert shown(write(tmp_path / "b.dcm", overlay)) == expected
    assert shown(write(tmp_path / "c.dcm", (RAMP << 4) | 5, HighBit=15)) == expected


@pytest.mark.parametrize("fill", [0x0000, 0xF000])
def test_signed_values_of_12_bits(tmp_path: Path, fill: int) -> None:
    """-2048 is 0x800, whether the sign goes on into the bits that are not stored or not."""
    pixels = np.array([[0x800 | fill, 0xFFF | fill, 0, 0x7FF]], dtype=np.uint16)
    # From -2048 to 2047: -1 is 2047 * 255 / 4095 = 127.47, 0 is 127.53
    assert shown(write(tmp_path / "a.dcm", pixels, PixelRepresentation=1)) == [[0, 127, 128, 255]]


def test_windows_by_the_formulas_of_the_standard(tmp_path: Path) -> None:
    pixels = np.array([[0, 950, 1000, 1049, 1050, 4095]], dtype=np.uint16)
    window = {"WindowCenter": 1000, "WindowWidth": 101}
    # LINEAR: (x - 999.5) / 100 + .5: 950 -> .005, 1000 -> .505, 1049 -> .995, 1050 -> 1.005
    linear = [[0, 1, 129, 254, 255, 255]]
    assert shown(write(tmp_path / "a.dcm", pixels, **window)) == linear
    assert shown(write(tmp_path / "b.dcm", pixels, VOILUTFunction="LINEAR", **window)) == linear
    # LINEAR_EXACT, width 100: (x - 1000) / 100 + .5: 950 -> 0, 1000 -> .5, 1049 -> .99
    exact = {"WindowCenter": 1000, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
    assert shown(write(tmp_path / "c.dcm", pixels, **exact)) == [[0, 0, 128, 252, 255, 255]]
    # SIGMOID, width 100: 1 / (1 + exp(-4 (x - 1000) / 100)): 950 -> 1 / (1 + e^2) = .1192, 1049 -> .8766, 1050 -> .8808
    sigmoid = {**exact, "VOILUTFunction": "SIGMOID"}
    assert shown(write(tmp_path / "d.dcm", pixels, **sigmoid)) == [[0, 30, 128, 224, 225, 255]]


def test_windows_equal_those_of_pydicom(tmp_path: Path) -> None:
    from pydicom.pixels import apply_windowing

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4096, (20, 30), dtype=np.uint16)
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        path = write(tmp_path / "a.dcm", pixels, WindowCenter=1900.5, WindowWidth=2345, VOILUTFunction=function)
        reference = apply_windowing(pixels, pydicom.dcmread(path)) / 4095 * 255
        assert np.abs(np.asarray(shown(path)) - reference).max() <= 0.5 + 1e-6


def test_the_first_of_several_windows_is_taken(tmp_path: Path) -> None:
    both = write(tmp_path / "a.dcm", RAMP, WindowCenter=[1000, 3000], WindowWidth=[101, 500])
    assert shown(both) == shown(write(tmp_path / "b.dcm", RAMP, WindowCenter=1000, WindowWidth=101))


@pytest.mark.parametrize("window", [(1000, 0), (1000, 0.5), (None, 100), (1000, None)])
def test_a_window_without_width_is_none(tmp_path: Path, window: tuple) -> None:
    pair = {name: x for name, x in zip(("WindowCenter", "WindowWidth"), window, strict=True) if x is not None}
    assert shown(write(tmp_path / "a.dcm", RAMP, **pair)) == shown(write(tmp_path / "b.dcm", RAMP))


def test_a_window_of_width_1_parts_black_from_white(tmp_path: Path) -> None:
    pixels = np.array([[999, 1000]], dtype=np.uint16)
    assert shown(write(tmp_path / "a.dcm", pixels, WindowCenter=1000, WindowWidth=1)) == [[0, 255]]


def test_a_window_is_in_units_after_rescaling(tmp_path: Path) -> None:
    pixels = np.array([[0, 1024, 1074, 2000]], dtype=np.uint16)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -2048, "WindowCenter": 0, "WindowWidth": 201}
    # 1024 -> 0, 1074 -> 100: (0 + .5) / 200 + .5 = .5025, (100 + .5) / 200 + .5 = 1.0025
    assert shown(write(tmp_path / "a.dcm", pixels, **rescaled)) == [[0, 128, 255, 255]]


def test_a_falling_rescale_turns_grey_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, RescaleSlope=-1, RescaleIntercept=4095)
    assert shown(path) == [[255, 255, 255, 193], [127, 68, 0, 0]]


def look_up_table(entries: list[int], first: int, bits: int, packed: bool = False) -> list[Dataset]:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    if packed:
        item.add_new(0x00283006, "OW", bytes(entries))
    else:
        item.add_new(0x00283006, "US", entries)
    return [item]


def test_a_modality_table_goes_first(tmp_path: Path) -> None:
    pixels = np.array([[0, 10, 11, 12, 100]], dtype=np.uint16)
    table = look_up_table([0, 500, 1000], 10, 12)
    # Below 10 the first entry, above 12 the last; then stretched from 0 to 1000.
    assert shown(write(tmp_path / "a.dcm", pixels, ModalityLUTSequence=table)) == [[0, 0, 128, 255, 255]]


def test_a_voi_table_goes_before_a_window(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 2, 3, 4095]], dtype=np.uint16)
    both = {"VOILUTSequence": look_up_table([0, 4095, 1000, 2048], 0, 12), "WindowCenter": 9, "WindowWidth": 2}
    assert shown(write(tmp_path / "a.dcm", pixels, **both)) == [[0, 255, 62, 128, 128]]


def test_a_voi_table_that_says_more_bits_than_it_uses(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 2]], dtype=np.uint16)
    table = look_up_table([0, 2048, 4095], 0, 16)
    assert shown(write(tmp_path / "a.dcm", pixels, VOILUTSequence=table)) == [[0, 128, 255]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_voi_table_from_12_bits_to_8(tmp_path: Path, packed: bool) -> None:
    table = look_up_table([value // 16 for value in range(4096)], 0, 8, packed)
    pixels = np.array([[0, 255, 256, 4095]], dtype=np.uint16)
    assert shown(write(tmp_path / "a.dcm", pixels, VOILUTSequence=table)) == [[0, 15, 16, 255]]


def test_a_voi_table_in_words_of_either_order(tmp_path: Path) -> None:
    for order, syntax in (("<u2", ExplicitVRLittleEndian), (">u2", ExplicitVRBigEndian)):
        table = look_up_table([0, 0, 0], 0, 12)
        del table[0].LUTData
        table[0].add_new(0x00283006, "OW", np.array([0, 2048, 4095]).astype(order).tobytes())
        pixels = np.array([[0, 1, 2]], dtype=np.uint16)
        assert shown(write(tmp_path / "a.dcm", pixels, syntax, VOILUTSequence=table)) == [[0, 128, 255]]


def test_a_voi_table_whose_first_value_is_negative(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 2]], dtype=np.uint16)
    table = look_up_table([0, 128, 255], 65535, 8)  # -1 where the values are rescaled to -1, 0, 1
    path = write(tmp_path / "a.dcm", pixels, VOILUTSequence=table, RescaleSlope=1, RescaleIntercept=-1)
    assert shown(path) == [[0, 128, 255]]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_not_part_of_the_range(tmp_path: Path, photometric: str) -> None:
    pixels = np.array([[63000, 63000, 100, 200, 300]], dtype=np.uint16)
    bits = {"BitsStored": 16, "HighBit": 15, "PixelPaddingValue": 63000, "PhotometricInterpretation": photometric}
    grey = [0, 128, 255] if photometric == "MONOCHROME2" else [255, 128, 0]
    assert shown(write(tmp_path / "a.dcm", pixels, **bits)) == [[0, 0, *grey]]
    pixels[0, 0] = 62000
    assert shown(write(tmp_path / "b.dcm", pixels, PixelPaddingRangeLimit=62000, **bits)) == [[0, 0, *grey]]


def test_signed_padding(tmp_path: Path) -> None:
    pixels = np.array([[-2000, -100, 0, 100]], dtype=np.int16)
    bits = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "PixelPaddingValue": -2000}
    assert shown(write(tmp_path / "a.dcm", pixels, **bits)) == [[0, 0, 128, 255]]


def test_an_image_of_one_value_or_of_padding_alone_is_black(tmp_path: Path) -> None:
    pixels = np.full((2, 2), 77, dtype=np.uint16)
    assert shown(write(tmp_path / "a.dcm", pixels)) == [[0, 0], [0, 0]]
    assert shown(write(tmp_path / "b.dcm", pixels, PixelPaddingValue=77)) == [[0, 0], [0, 0]]


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 120, 200]]], dtype=np.uint8)
EIGHT = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "SamplesPerPixel": 3, "PlanarConfiguration": 0}


def test_colour(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", COLOURS, PhotometricInterpretation="RGB", **EIGHT)
    np.testing.assert_array_equal(np.asarray(View(path).read()), COLOURS)
    planes = np.ascontiguousarray(COLOURS.transpose(2, 0, 1))
    settings = {**EIGHT, "PlanarConfiguration": 1, "Rows": 2, "Columns": 2}
    path = write(tmp_path / "b.dcm", planes, PhotometricInterpretation="RGB", **settings)
    np.testing.assert_array_equal(np.asarray(View(path).read()), COLOURS)
    ybr = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    path = write(tmp_path / "c.dcm", ybr, PhotometricInterpretation="YBR_FULL", **EIGHT)
    assert np.abs(np.asarray(View(path).read()).astype(int) - COLOURS).max() <= 2  # one step of rounding each way


def test_16_bit_colour(tmp_path: Path) -> None:
    settings = {**EIGHT, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}
    path = write(tmp_path / "a.dcm", COLOURS.astype(np.uint16) * 257, PhotometricInterpretation="RGB", **settings)
    np.testing.assert_array_equal(np.asarray(View(path).read()), COLOURS)


def test_a_palette(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 2]], dtype=np.uint8)
    palette = {
        f"{name}PaletteColorLookupTable{kind}": value
        for name, values in (("Red", [255, 0, 9]), ("Green", [0, 255, 8]), ("Blue", [0, 1, 7]))
        for kind, value in (("Descriptor", [3, 0, 16]), ("Data", (np.array(values, dtype="<u2") * 257).tobytes()))
    }
    settings = {
        **EIGHT,
        "SamplesPerPixel": 1,
        "PlanarConfiguration": None,
        "PhotometricInterpretation": "PALETTE COLOR",
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    path = write(tmp_path / "a.dcm", pixels, **settings, **palette)
    assert np.asarray(View(path).read()).tolist() == [[[255, 0, 0], [0, 255, 1], [9, 8, 7]]]


@pytest.mark.parametrize("spacing", [{"PixelSpacing": [0.2, 0.1]}, {"PixelAspectRatio": ["2", "1"]}])
def test_pixels_that_are_not_square_are_made_so(tmp_path: Path, spacing: dict) -> None:
    pixels = np.zeros((20, 30), dtype=np.uint16)
    pixels[:10] = 4095
    image = View(write(tmp_path / "a.dcm", pixels, **spacing)).read()
    assert image.size == (30, 40)
    assert np.asarray(image)[:18].min() > 250
    assert np.asarray(image)[22:].max() < 5
    wide = {"ImagerPixelSpacing": [0.1, 0.2]}
    assert View(write(tmp_path / "b.dcm", pixels, **wide)).read().size == (60, 20)


def test_nothing_is_flipped(tmp_path: Path) -> None:
    for orientation in (["L", "F"], ["R", "F"], ["L", "H"]):
        assert shown(write(tmp_path / "a.dcm", RAMP, PatientOrientation=orientation)) == [
            [0, 0, 0, 62],
            [128, 187, 255, 255],
        ]


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
    with pytest.raises(DecoderMissingError, match=r"a\.dcm is DICOM, which needs pydicom: pip install 'mrg\[dicom\]'"):
        View(path).read()


@pytest.mark.parametrize(
    ("syntax", "line"),
    [
        (JPEG2000Lossless, r"pip install 'mrg\[dicom\]'$"),
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
