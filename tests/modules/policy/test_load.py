"""Policy folders with an adapter in them."""

import pytest
import torch

from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from tests.family_checkpoints import save_checkpoint


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("lora", [None, LoRA(2)])
def test_an_adapter_next_to_full_weights_is_merged(tmp_path, caplog, kind, lora):
    """As transformers computes with such a folder; what is saved afterwards is complete."""
    folder = save_checkpoint(kind, tmp_path / "both")
    adapted = load_policy(folder, LoRA(4))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    adapted.save(tmp_path / "merged")
    adapted.save_adapter(folder)
    caplog.clear()
    policy = load_policy(folder, lora)
    assert "has an adapter (adapter_config.json) next to full weights: it is merged into them" in caplog.text
    assert policy.has_adapter == (lora is not None)
    plain = load_policy(str(tmp_path / "merged"), lora)
    for one, other in zip(policy.named_parameters(), plain.named_parameters(), strict=True):
        assert (one[0], one[1].requires_grad, one[1].dtype) == (other[0], other[1].requires_grad, other[1].dtype)
    policy.save(tmp_path / "out")
    expected, found = (load_policy(str(tmp_path / name)).state_dict() for name in ("merged", "out"))
    assert set(found) == set(expected)
    start = load_policy(save_checkpoint(kind, tmp_path / "start")).state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected.items())
    assert any(not torch.allclose(start[name], value, atol=1e-3) for name, value in expected.items())


def test_adapters_that_cannot_be_merged(tmp_path):
    folder = save_checkpoint("qwen2_5_vl", tmp_path / "both")
    load_policy(folder, LoRA(4)).save_adapter(tmp_path / "alone")
    with pytest.raises(ValueError, match="alone' is an adapter without the weights of its base"):
        load_policy(str(tmp_path / "alone"))
    load_policy(folder, LoRA(4)).save_adapter(folder)
    with pytest.raises(ValueError, match="cannot be merged into 4-bit weights: merge it first"):
        load_policy(folder, LoRA(4), load_in_4bit=True)
