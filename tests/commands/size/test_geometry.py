"""Parameters are counted, and what is counted is what the published checkpoints hold."""

import json

import pytest
from transformers import AutoConfig

from mrg.commands.size.geometry import PUBLISHED, geometry, read_geometry
from mrg.modules.policy.families import FAMILIES
from tests.commands.size.models import build


@pytest.mark.parametrize(("name", "total"), [("3b", 3754622976), ("7b", 8292166656), ("32b", 33452718336)])
def test_published_models(name, total):
    """Totals as in the index of each checkpoint on the hub (bytes of its bfloat16 tensors over two)."""
    assert read_geometry(name).total == total


def test_a_convolutional_tower_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"The memory of a vision tower of type '\w+' is not known"):
        geometry(AutoConfig.for_model("fast_vlm"))


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "fast_vlm"])
def test_every_family_has_a_geometry(kind):
    shape = geometry(AutoConfig.for_model(kind))
    assert shape.decoder + shape.vision < shape.total
    assert len(shape.linears) == 7 * shape.num_layers
    assert shape.image_tokens or shape.patch_pixels
    assert min(shape.vision_depth, shape.vision_width, shape.vision_inner_width, shape.patch_values) > 0


def test_counts_are_those_of_real_tensors():
    policy = build(64, 176, 4, 2, rank=4)
    shape = geometry(policy.base.config)
    named = {name: p.numel() for name, p in policy.named_parameters()}
    assert shape.total == sum(n for name, n in named.items() if "lora_" not in name)
    assert shape.adapter(4) == sum(n for name, n in named.items() if "lora_" in name)
    assert shape.decoder == sum(n for name, n in named.items() if ".layers." in name and "lora_" not in name)
    assert shape.vision == sum(n for name, n in named.items() if ".visual." in name)


def test_a_folder_needs_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["3b"]))
    assert read_geometry(str(tmp_path)) == read_geometry("3b")


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nobody/nothing' cannot be read .*: check .*, or pass --geometry"):
        read_geometry("nobody/nothing")
    with pytest.raises(ValueError, match=r"has no config\.json: train it first"):
        read_geometry(str(tmp_path / "lost"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="is of type 'llama'; supported are"):
        read_geometry(str(tmp_path))
