import base64
import io

import numpy as np
import pytest
from PIL import Image

from mrg.commands.data_check import check_splits
from mrg.commands.data_check.page import write_check_page
from mrg.commands.data_check.samples import pick_samples, show_samples
from mrg.commands.data_check.statistics import collect_statistics
from mrg.datamodules.study import Study, View
from mrg.metrics import RulesLabeler

TEXTS = ["Edema.", "Possible edema.", "", "Edema. <b>Rib fracture.", "Edema.", "No edema."]


@pytest.fixture
def splits(tmp_path):
    """Edema is certain in studies 0, 3 and 4 of train; the image of study 4 does not exist."""
    pixels = np.full((600, 300), 90, np.uint8)
    views = {4: (View(tmp_path / "gone.png"),), 3: (View(pixels, "frontal"), View(pixels), View(pixels))}
    train = [Study(f"t{i}", views.get(i, (View(pixels, "frontal"),)), text) for i, text in enumerate(TEXTS)]
    return {"train": train, "val": [Study("v0", (View(pixels),), "Pneumothorax.")]}


def test_samples_are_certain_and_spread_over_the_first_split(splits):
    samples = pick_samples(collect_statistics(splits, RulesLabeler()))
    assert [(row["split"], row["place"]) for row in samples["Edema"]] == [("train", 0), ("train", 4)]
    assert samples["Fracture"] == [{"split": "train", "place": 3}]
    assert samples["Pneumothorax"] == [{"split": "val", "place": 0}]
    assert "Atelectasis" not in samples


def test_samples_are_shown_with_their_images(splits, tmp_path):
    samples = pick_samples(collect_statistics(splits, RulesLabeler()))
    shown = show_samples(samples, splits, with_images=True)
    first, second = shown["Edema"]
    (view,) = first["views"]
    assert (first["id"], first["report"], view["position"]) == ("t0", "Edema.", "frontal")
    assert Image.open(io.BytesIO(base64.b64decode(view["jpeg"]))).size == (view["width"], view["height"]) == (192, 384)
    assert "gone.png does not exist" in second["views"][0]["problem"]
    assert [view["position"] for view in shown["Fracture"][0]["views"]] == ["frontal", "view 2"]  # two at most
    assert show_samples(samples, splits, with_images=False)["Edema"][0]["views"] == []


def test_samples_are_on_the_page(splits, tmp_path):
    result = {"mrg": "1", "name": "mine", "data": {"description": "d", "removed": {}, "config": {}}}
    result |= check_splits(splits, RulesLabeler())
    write_check_page(tmp_path / "page.html", result, show_samples(result["samples"], splits, True))
    text = (tmp_path / "page.html").read_text()
    assert text.count("<img ") == 1 + 2 + 1 + sum(row["place"] != 4 for row in result["samples"].get("No Finding", []))
    assert "Edema. &lt;b&gt;Rib fracture." in text
    assert "gone.png does not exist" in text
