import numpy as np
import pytest
import torch

from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.study import Study, View
from mrg.modules.image_features import (
    Features,
    PixelCollator,
    TowerCollator,
    first_frontal,
    nearest,
    pixel_rows,
    tower_features,
)


def study(*images, positions=("", "", "")):
    views = tuple(View(image, position) for image, position in zip(images, positions, strict=False))
    return Study("s", views, "Clear.")


def noise(seed, shape=(40, 30)):
    return np.random.default_rng(seed).integers(0, 120, shape, dtype=np.uint8)


def test_the_first_frontal_view_is_looked_at():
    images = [noise(k) for k in range(3)]
    assert first_frontal(study(*images, positions=("lateral", "frontal", "frontal"))).image is images[1]
    assert first_frontal(study(*images, positions=("lateral", "", "lateral"))).image is images[0]


def test_pixels_by_hand():
    pixels = np.kron(np.array([[10, 20], [30, 60]], np.uint8), np.ones((2, 2), np.uint8))
    (row,) = PixelCollator(4)([study(pixels)]).values
    assert row.tolist() == [-20, -20, -10, -10, -20, -20, -10, -10, 0, 0, 30, 30, 0, 0, 30, 30]
    np.testing.assert_allclose(pixel_rows(Features([], row[None])).norm(), 1, rtol=1e-6)


def test_likeness_is_the_correlation_whatever_brightness_and_contrast():
    first, other = noise(0), noise(1)
    rows = pixel_rows(PixelCollator(16)([study(x) for x in (first, 2 * first + 5, other)]))
    small = [row.numpy() for row in PixelCollator(16)([study(first), study(other)]).values]
    assert float(rows[0] @ rows[1]) == pytest.approx(1, abs=1e-3)
    assert float(rows[0] @ rows[2]) == pytest.approx(np.corrcoef(*small)[0, 1], abs=1e-5)


def test_an_image_of_one_brightness_is_like_none():
    rows = pixel_rows(PixelCollator(8)([study(np.full((9, 9), 7, np.uint8)), study(noise(0))]))
    assert float(rows[0] @ rows[1]) == 0
    assert not rows.isnan().any()


def test_an_unreadable_image_names_the_study(tmp_path):
    with pytest.raises(ImageReadError, match=r"^Study s: Image .*nope\.png does not exist"):
        PixelCollator(8)([study(tmp_path / "nope.png")])


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_nearest_is_the_argmax_in_blocks_of_any_size(block):
    torch.manual_seed(0)
    known = torch.nn.functional.normalize(torch.randn(50, 6), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(9, 6), dim=1)
    assert nearest(queries, known, block).tolist() == (queries @ known.T).argmax(1).tolist()
    assert nearest(known[:5], torch.cat([known, known]), block).tolist() == [0, 1, 2, 3, 4]  # the first among equals


def test_tower_features_are_means_over_the_image_alone(policy):
    """Of each study one image, whatever else is in the batch, and however many tokens an image has."""
    studies = [study(noise(0, (112, 112))), study(noise(1, (56, 112)), noise(2)), study(noise(3, (112, 56)))]
    collator = TowerCollator(policy.processor)
    with torch.no_grad():
        together = tower_features(policy, collator(studies))
        alone = torch.cat([tower_features(policy, collator([each])) for each in studies])
        batch = collator(studies[:1])
        tokens, _ = policy.family.images(policy.base.model, batch)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[0], torch.nn.functional.normalize(tokens.mean(0), dim=0))
    assert collator(studies).studies == studies  # all of their views are named in the predictions
