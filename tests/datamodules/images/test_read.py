import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.errors import MAX_PIXELS, DataNotFoundError, ImageReadError
from mrg.datamodules.images.read import ImageFinder, read_image
from mrg.datamodules.study import View

GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def _grey(path: Path) -> np.ndarray:
    """The view's pixels as one channel, after a check that all three are equal."""
    image = View(path).load()
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def _noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8))


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "pgm"])
def test_lossless_8_bit_files_keep_every_value(tmp_path: Path, extension: str) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / f"a.{extension}")
    np.testing.assert_array_equal(_grey(tmp_path / f"a.{extension}"), GRADIENT)


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, extension: str) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], dtype=np.uint16)
    if extension == "pgm":  # older Pillow reads these but does not write them
        (tmp_path / "a.pgm").write_bytes(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a.{extension}")
    # One step of 8 bits is 257 of 16 bits: 128/257 rounds down, 129/257 up, 32768/257 = 127.50 up.
    np.testing.assert_array_equal(_grey(tmp_path / f"a.{extension}"), [[0, 0, 1, 1], [128, 254, 255, 255]])


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_depth_within_16_bits_is_taken_from_the_values(tmp_path: Path, bits: int) -> None:
    white = 2**bits - 1
    Image.fromarray(np.array([[0, white // 2, white]], dtype=np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(_grey(tmp_path / "a.png"), [[0, 127, 255]])


def test_a_black_16_bit_image_stays_black(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 4), dtype=np.uint16)).save(tmp_path / "a.png")
    assert _grey(tmp_path / "a.png").max() == 0


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageReadError, match=r"a\.tif has values from 0\.0 to 0\.5 .* convert it"):
        View(tmp_path / "a.tif").load()


def test_values_outside_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageReadError, match="0 to 70000"):
        View(tmp_path / "a.tif").load()


def test_palette_is_resolved(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 10, 10, 200, 200, 200, 90, 90, 90])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    np.testing.assert_array_equal(_grey(tmp_path / "a.png"), [[10, 200, 90]])


def test_transparent_pixels_are_black_whatever_colour_they_hide(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0], [255, 255], [200, 128]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "LA"
    np.testing.assert_array_equal(_grey(tmp_path / "a.png"), [[0, 255, 100]])  # 200 * 128 / 255 = 100.4


def test_bilevel_and_cmyk(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1").save(tmp_path / "a.png")
    np.testing.assert_array_equal(_grey(tmp_path / "a.png"), [[0, 255]])
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "a.jpg")
    assert _grey(tmp_path / "a.jpg").max() <= 2  # full black ink, through a lossy format


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[0, 50, 100], [150, 200, 250]]),
        (2, [[100, 50, 0], [250, 200, 150]]),
        (3, [[250, 200, 150], [100, 50, 0]]),
        (4, [[150, 200, 250], [0, 50, 100]]),
        (5, [[0, 150], [50, 200], [100, 250]]),
        (6, [[150, 0], [200, 50], [250, 100]]),
        (7, [[250, 100], [200, 50], [150, 0]]),
        (8, [[100, 250], [50, 200], [0, 150]]),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, expected: list[list[int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.array([[0, 50, 100], [150, 200, 250]], dtype=np.uint8)
    for values in (stored, stored.astype(np.uint16) * 257):
        for name in ("a.png", "a.tif"):  # Pillow turns TIFF files itself when it decodes them: not twice
            Image.fromarray(values).save(tmp_path / name, exif=exif)
            np.testing.assert_array_equal(_grey(tmp_path / name), expected)


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (16, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert View(tmp_path / "a.jpg").load().size == (8, 16)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged EXIF blocks
@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("a.jpg", {}), ("b.jpg", {"progressive": True}), ("a.tif", {}), ("a.webp", {})]
)
def test_a_truncated_file_never_passes(tmp_path: Path, name: str, options: dict[str, bool]) -> None:
    _noise().save(tmp_path / name, **options)
    whole = (tmp_path / name).read_bytes()
    original = np.asarray(View(tmp_path / name).load())
    cut_file = tmp_path / f"cut{Path(name).suffix}"
    messages = []
    for cut in range(0, len(whole), 97):
        cut_file.write_bytes(whole[:cut])
        try:
            pixels = np.asarray(View(cut_file).load())
        except ImageReadError as error:
            messages.append(str(error))
        else:
            np.testing.assert_array_equal(pixels, original)  # only bytes behind the pixels are gone
    assert len(messages) > 5
    assert all(str(cut_file) in message and "\n" not in message for message in messages)


def test_truncation_is_said(tmp_path: Path) -> None:
    _noise().save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageReadError, match=rf"a\.png is truncated at {len(whole) // 2} bytes; copy it again\."):
        View(tmp_path / "a.png").load()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged EXIF blocks
def test_damaged_bytes_are_never_another_kind_of_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    messages = []
    for name in ("a.png", "a.jpg", "a.bmp"):
        exif = Image.Exif()
        exif[0x0112] = 6
        _noise(24).save(tmp_path / name, **({} if name == "a.bmp" else {"exif": exif}))
        whole = np.frombuffer((tmp_path / name).read_bytes(), dtype=np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            damaged[rng.integers(0, min(300, len(whole)), 3)] = rng.integers(0, 256, 3)
            (tmp_path / name).write_bytes(damaged.tobytes())
            try:
                assert View(tmp_path / name).load().mode == "RGB"
            except ImageReadError as error:
                messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"x\.png does not exist\."),
        (b"", r"x\.png is empty \(0 bytes\); copy it again\."),
        (b"<html>404</html>", r"x\.png is not an image of a known format; replace it by a PNG, JPEG or DICOM file\."),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageReadError, match=message):
        View(tmp_path / "x.png").load()


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="cannot be read"):
        View(tmp_path).load()


def _png_header(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that claims the given size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(8001, 8000), (10000, 10000), (100000, 100000)])
def test_decompression_bombs_are_refused_by_their_header(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(_png_header(*size))
    with pytest.raises(ImageReadError, match=rf"{MAX_PIXELS}.* scale it down"):
        View(tmp_path / "a.png").load()


def test_pixels_in_memory() -> None:
    np.testing.assert_array_equal(np.asarray(View(GRADIENT).load())[..., 1], GRADIENT)
    colour = np.stack([GRADIENT, GRADIENT // 2, GRADIENT // 4], axis=-1)
    np.testing.assert_array_equal(np.asarray(View(colour).load()), colour)


@pytest.mark.parametrize(
    "pixels",
    [
        GRADIENT.astype(np.uint16),
        GRADIENT.astype(np.float32),
        GRADIENT[None],
        np.zeros((8, 8, 4), dtype=np.uint8),
        np.zeros((0, 8), dtype=np.uint8),
    ],
)
def test_pixels_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ImageReadError, match=r"Expected the pixels of a view to be uint8 of shape"):
        View(pixels).load()


@pytest.mark.parametrize(
    ("present", "listed", "found"),
    [
        (["0.png"], "0.png", "0.png"),
        (["0.jpg"], "0.png", "0.jpg"),
        (["0.jpeg"], "0.jpg", "0.jpeg"),
        (["0.JPG"], "0.png", "0.JPG"),
        (["0.png"], "0.JPG", "0.png"),
        (["A-1.PNG"], "a-1.png", "A-1.PNG"),
        (["0.jpg", "0.png"], "0.jpg", "0.jpg"),  # as listed before any other
        (["0.jpeg", "0.jpg", "0.png"], "0.bmp", "0.png"),
        (["a.png", "A.png"], "A.png", "A.png"),
        (["0.tif"], "0.tif", "0.tif"),
        (["0.jpg", "0.PNG"], "0.png", "0.PNG"),
        (["A.png", "a.png"], "A.jpg", "A.png"),  # the same name in the same case before any other
        (["1.2.840.113.png", "1.2.840.113.5.png"], "1.2.840.113.5", "1.2.840.113.5.png"),
        (["1.2.840.113.png", "1.2.840.113.6.png"], "1.2.840.113.6.dcm", "1.2.840.113.6.png"),
        (["1.2.276.0.831.png"], "1.2.276.0.831", "1.2.276.0.831.png"),
        (["1_IM-0001-4001.dcm.png"], "1_IM-0001-4001.dcm.jpg", "1_IM-0001-4001.dcm.png"),
    ],
)
def test_an_image_is_found_under_another_extension_or_case(
    tmp_path: Path, present: list[str], listed: str, found: str
) -> None:
    (tmp_path / "s").mkdir()
    for name in present:
        (tmp_path / "s" / name).touch()
    finder = ImageFinder(tmp_path)
    assert finder.find(f"s/{listed}") == tmp_path / "s" / found
    finder.check("annotation.json", "")


def test_images_may_lie_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    assert ImageFinder(tmp_path).find("x.png") == tmp_path / "x.jpg"


def test_an_image_may_have_several_published_names(tmp_path: Path) -> None:
    (tmp_path / "1_a.dcm.jpg").touch()
    (tmp_path / "CXR2_a.png").touch()
    finder = ImageFinder(tmp_path)
    assert finder.find("CXR1_a.png", "1_a.dcm.png") == tmp_path / "1_a.dcm.jpg"
    assert finder.find("CXR2_a.png", "2_a.dcm.png") == tmp_path / "CXR2_a.png"
    assert finder.find("CXR3_a.png", "3_a.dcm.png") == tmp_path / "CXR3_a.png"
    assert (finder.num_found, finder.missing) == (2, ["CXR3_a.png"])


@pytest.mark.parametrize("listed", ["s/0.png", "s/1.txt", "s/1.5", "s/1.7.png", "t/1.png", "s", "s/link.png", ""])
def test_what_is_not_there_is_not_found(tmp_path: Path, listed: str) -> None:
    (tmp_path / "s" / "0.png").mkdir(parents=True)
    (tmp_path / "s" / "1.tif").touch()
    (tmp_path / "s" / "1.png").touch()
    (tmp_path / "t").touch()
    (tmp_path / "s" / "link.png").symlink_to(tmp_path / "gone.png")
    finder = ImageFinder(tmp_path)
    finder.find(listed)
    assert finder.missing == [listed]


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "s").mkdir(parents=True)
    (images / "s" / "0.png").touch()
    finder = ImageFinder(images)
    for index in range(8):
        finder.find(f"s/{index}.png")
    with pytest.raises(DataNotFoundError) as caught:
        finder.check(tmp_path / "annotation.json", "copy them again")
    assert str(caught.value).startswith(
        f"7 of the 8 images listed in {tmp_path}/annotation.json are not in {images}: "
        "s/1.png, s/2.png, s/3.png, s/4.png, s/5.png, …; copy them again."
    )


@pytest.mark.parametrize(
    ("suffix", "mode"), [("dds", "RGB"), ("blp", "P"), ("avif", "RGB"), ("tga", "L"), ("sgi", "L")]
)
def test_damaged_files_of_any_format_are_one_kind_of_error(tmp_path: Path, suffix: str, mode: str) -> None:
    """Their decoders raise NotImplementedError, RuntimeError and others."""
    file = tmp_path / f"a.{suffix}"
    try:
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode).save(file)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"this Pillow writes no {suffix}")
    whole, rng, messages = np.frombuffer(file.read_bytes(), dtype=np.uint8), np.random.default_rng(0), []
    for number in range(80):
        damaged = whole.copy()
        places = rng.integers(4, min(len(whole), 140), 3)
        damaged[places] = rng.integers(0, 256, 3)
        file.write_bytes(damaged[: len(whole) - 7 * (number % 5)].tobytes())
        try:
            assert View(file).read().mode in ("L", "RGB")
        except ImageReadError as error:
            messages.append(str(error))
    assert messages
    assert all(str(file) in message and "\n" not in message for message in messages)


def test_a_format_whose_decoder_may_not_end_is_not_read(tmp_path: Path) -> None:
    """Pillow 10 reads beyond the end of DDS for ever."""
    file = tmp_path / "a.dds"
    Image.new("RGB", (64, 64)).save(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ImageReadError, match=r"a\.dds is not an image of a known format; replace it by a PNG"):
        read_image(file)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM", "TGA"])
def test_formats_that_are_read(tmp_path: Path, form: str) -> None:
    Image.new("RGB", (9, 5), (200, 200, 200)).save(tmp_path / "a", form)
    assert read_image(tmp_path / "a").size == (9, 5)


@pytest.mark.parametrize(
    "head", [b"DDS " + struct.pack("<I", 124), b"BLP2" + bytes(8), b"\0\0\0\x1cftypavif" + bytes(16)]
)
def test_a_head_without_a_body(tmp_path: Path, head: bytes) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(head + bytes(200))
    with pytest.raises(ImageReadError, match=r"a\.png"):
        View(file).read()
