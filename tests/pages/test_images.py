import base64
import io

import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.study import View
from mrg.pages.images import ImageOptions, page_images


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)


def decode(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_embedded_images_are_small_grey_and_not_enlarged(tmp_path):
    Image.fromarray(noise(300, 600)).save(tmp_path / "a.png")
    studies = [[View(tmp_path / "a.png", "frontal"), View(noise(40, 30), "lateral")], []]
    found = page_images(studies, ImageOptions(image_size=200), tmp_path)
    assert found.views == [[{"position": "frontal", "size": (200, 100)}, {"position": "lateral", "size": (30, 40)}], []]
    assert [decode(found.embedded[0, view]).size for view in (0, 1)] == [(200, 100), (30, 40)]
    assert decode(found.embedded[0, 0]).mode == "L"
    assert decode(found.embedded[0, 0]).format == "JPEG"


def test_colour_stays(tmp_path):
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    assert decode(page_images([[View(pixels)]], ImageOptions(), tmp_path).embedded[0, 0]).mode == "RGB"


def test_an_unreadable_image_says_so_in_its_place(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    studies = [[View(tmp_path / "broken.png"), View(noise(20, 20))], [View(tmp_path / "none.png")]]
    views = page_images(studies, ImageOptions(), tmp_path).views
    assert "broken.png is not an image" in views[0][0]["problem"]
    assert views[0][1]["size"] == (20, 20)
    assert "none.png does not exist" in views[1][0]["problem"]


def test_images_shrink_until_they_fit(tmp_path):
    studies = [[View(noise(500, 500, seed), "frontal")] for seed in range(12)]
    whole = page_images(studies, ImageOptions(image_size=500), tmp_path)
    size = sum(map(len, whole.embedded.values())) / 1e6
    small = page_images(studies, ImageOptions(image_size=500, megabytes=size / 2), tmp_path)
    assert whole.image_size == 500
    assert small.image_size == 320
    assert len(small.embedded) == 12
    assert sum(map(len, small.embedded.values())) / 1e6 < size / 2


def test_where_nothing_is_small_enough_the_rest_is_linked(tmp_path):
    studies = []
    for index in range(10):
        Image.fromarray(noise(200, 200, index)).save(tmp_path / f"image {index}.png")
        studies.append([View(tmp_path / f"image {index}.png")])
    one = len(page_images(studies[:1], ImageOptions(image_size=160), tmp_path).embedded[0, 0]) / 1e6
    found = page_images(studies, ImageOptions(megabytes=4.5 * one), tmp_path)
    assert sorted(found.embedded) == [(index, 0) for index in range(4)]
    assert found.views[4] == [{"position": "", "link": "image%204.png"}]


def test_links_are_relative_to_the_page(tmp_path):
    file = tmp_path / "data" / "a#1.png"
    found = page_images([[View(file, "frontal"), View(noise(9, 9))]], ImageOptions("link"), tmp_path / "runs" / "x")
    assert found.views[0][0] == {"position": "frontal", "link": "../../data/a%231.png"}
    assert "no file" in found.views[0][1]["problem"]
    assert not found.embedded


def test_none():
    assert page_images([[View(noise(9, 9))]], ImageOptions("none"), None).views == [[]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": "inline"}, "'embed', 'link' or 'none', but got 'inline'"),
        ({"image_size": 4}, "`image_size` of a gallery to be from 16 to 4096, but got 4"),
        ({"quality": 100}, "`quality` of a gallery to be from 1 to 95, but got 100"),
        ({"megabytes": 0}, "`megabytes` of a gallery to be above 0, but got 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageOptions(**settings)
