"""The parts of peft that `mrg.modules.policy.lora` uses, and that it uses them alone."""

import re
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from mrg.modules.policy import lora

ROOT = Path(__file__).parents[3]


@pytest.fixture
def model():
    """A peft model of two layers, the first of which is adapted; the adapter is not zero."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    wrapped = lora.add_adapter(base, lora.LoRA(rank=2, alpha=6), "0")
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if lora.is_adapter(name):
                parameter.normal_()
    return wrapped


@pytest.mark.parametrize(
    ("owner", "name"),
    [(LoraLayer, "get_base_layer")]
    + [(peft.tuners.lora.Linear, "get_delta_weight")]
    + [(peft.PeftModel, name) for name in ("get_base_model", "disable_adapter", "save_pretrained")],
)
def test_peft_still_has(owner, name):
    assert hasattr(owner, name), (
        f"peft {peft.__version__} has no {owner.__name__}.{name}, which mrg/modules/policy/lora.py needs: adapt it "
        "there."
    )


@pytest.mark.parametrize("name", ["lora_A", "lora_B"])
def test_layers_still_have(model, name):
    layer = model.get_base_model()[0]
    assert isinstance(getattr(layer, name, None), nn.ModuleDict), (
        f"peft {peft.__version__}: LoRA layers have no ModuleDict `{name}`, which mrg/modules/policy/lora.py needs: "
        "adapt it there."
    )
    assert model.active_adapter == "default"


def test_update_by_hand(model):
    """Scale 6 / 2 times B A, added to the base layer's output."""
    assert lora.has_adapter(model)
    base = lora.base_model(model)
    assert not lora.has_adapter(base)
    layers = lora.adapted_layers(base)
    assert list(layers) == ["0"]
    layer = layers["0"]
    a, b = (matrix.weight for matrix in lora.adapter_matrices(layer))
    update = lora.weight_update(model, layer)
    torch.testing.assert_close(update, 3 * b @ a)
    assert not update.requires_grad
    weight, x = lora.base_weight(layer), torch.randn(5, 4)
    torch.testing.assert_close(layer(x), x @ (weight + update).T + layer.get_base_layer().bias)
    with lora.adapter_off(model):
        torch.testing.assert_close(layer(x), x @ weight.T + layer.get_base_layer().bias)


def test_names(model):
    names = [name for name in lora.base_model(model).state_dict() if not lora.is_adapter(name)]
    assert [lora.base_name(name) for name in names] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_peft_is_used_in_one_file():
    hooks = re.compile(r"get_delta_weight|get_base_layer|LoraLayer|disable_adapter|peft_config|(import|from) peft")
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mrg").rglob("*.py")
        if hooks.search(path.read_text(encoding="utf-8"))
    }
    assert users == {"mrg/modules/policy/lora.py"}
