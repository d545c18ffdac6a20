"""The parts of transformers that `mrg.modules.prefix.attention` uses."""

import importlib
import inspect

import pytest
import torch
import transformers

from tests.families import QWEN, family_policy

WHERE = "which mrg/modules/prefix/attention.py needs: adapt it there."
LANGUAGE_MODELS = (
    "Qwen2VLTextModel", "Qwen2_5_VLTextModel", "Qwen3VLTextModel", "Gemma3TextModel", "LlamaModel", "MistralModel",
    "Qwen2Model", "Qwen3Model",
)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers", "AttentionInterface"),
        ("transformers.masking_utils", "AttentionMaskInterface"),
        ("transformers.masking_utils", "sdpa_mask"),
        ("transformers.integrations.sdpa_attention", "sdpa_attention_forward"),
    ],
)
def test_transformers_still_has(module, name):
    version = transformers.__version__
    assert hasattr(importlib.import_module(module), name), f"transformers {version} has no {module}.{name}, {WHERE}"


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_still_takes_the_arguments(name):
    model = getattr(transformers, name)
    arguments = inspect.signature(model.forward).parameters
    needed = ["attention_mask", "position_ids", "inputs_embeds", "use_cache"]
    needed += ["visual_pos_masks", "deepstack_visual_embeds"] if name.startswith("Qwen3VL") else []
    missing = [argument for argument in needed if argument not in arguments]
    assert not missing, f"transformers {transformers.__version__}: {name} does not take {missing}, {WHERE}"
    extra = any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in arguments.values())
    assert extra, (
        f"transformers {transformers.__version__}: {name} does not pass on other arguments to attention, {WHERE}"
    )


@pytest.mark.parametrize("family", QWEN)
def test_layers_call_the_attention_that_is_passed(family):
    """Once each, in order, with the layer's index; the vision tower keeps its own attention."""
    policy = family_policy(family, dtype=torch.float32)
    layers = []

    class Recorder:
        def attend(self, layer, query, key, value, scale, window=None):
            layers.append(layer)
            return torch.zeros_like(query)

    width = policy.base.config.text_config.hidden_size
    states = policy.hidden(torch.randn(2, 5, width), torch.arange(5).expand(3, 2, 5), shared=Recorder())
    assert states.shape == (2, 5, width)
    assert layers == [0, 1, 2]
    assert policy.base.config.vision_config._attn_implementation != "mrg_shared"
