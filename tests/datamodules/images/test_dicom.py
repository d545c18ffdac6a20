"""What is shown of the values in a DICOM file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.study import View

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests.dicom_files import RAMP, shown, write  # noqa: E402


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


def refusal(tmp_path: Path, pixels: np.ndarray, **tags: object) -> str:
    with pytest.raises(ImageReadError) as caught:
        View(write(tmp_path / "a.dcm", pixels, **tags)).read()
    return str(caught.value)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "same grey: RescaleSlope 0.0, RescaleIntercept 5.0"),
        ({"WindowCenter": 0, "WindowWidth": 1}, "same grey: WindowCenter 0.0, WindowWidth 1.0"),
        ({"WindowCenter": 90000, "WindowWidth": 10}, "same grey: WindowCenter 90000.0, WindowWidth 10.0"),
        ({"PresentationLUTShape": "INVERSE"}, "PresentationLUTShape is INVERSE, which contradicts"),
    ],
)
def test_tags_that_hide_the_image_are_refused(tmp_path: Path, tags: dict[str, object], reason: str) -> None:
    """Such images were black, white, or the negative of themselves."""
    assert reason in refusal(tmp_path, RAMP, **tags)


def test_a_voi_table_in_its_declared_bits(tmp_path: Path) -> None:
    """White is 4095 for 12 bits, although the table ends at 2047; values beyond the bits are refused."""
    pixels = np.array([[0, 1, 2]], dtype=np.uint16)
    table = look_up_table([0, 1024, 2047], 0, 12)
    assert shown(write(tmp_path / "a.dcm", pixels, VOILUTSequence=table)) == [[0, 64, 127]]
    table = look_up_table([0, 1024, 4096], 0, 12)
    expected = "VOILUTSequence has entries to 4096, but LUTDescriptor declares 12 bits"
    assert expected in refusal(tmp_path, pixels, VOILUTSequence=table)


def test_an_image_of_one_value_is_shown(tmp_path: Path) -> None:
    tags = {"WindowCenter": 0, "WindowWidth": 1}
    assert shown(write(tmp_path / "a.dcm", np.full((1, 3), 7, dtype=np.uint16), **tags)) == [[255, 255, 255]]
