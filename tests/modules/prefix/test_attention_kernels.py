"""The private kernels of torch that `mrg.modules.prefix.attention` uses."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
ARGUMENTS = {
    FORWARD: ["query", "key", "value", "dropout_p", "is_causal", "attn_mask", "scale"],
    f"{FORWARD}_backward": [
        "grad_out", "query", "key", "value", "out", "logsumexp", "dropout_p", "is_causal", "attn_mask", "scale",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_torch_still_has_the_kernel(name):
    sentence = f"torch {torch.__version__} has no torch.ops.aten.{name} with the arguments that "
    sentence += "mrg/modules/prefix/attention.py passes: adapt it there."
    assert hasattr(torch.ops.aten, name), sentence
    schema = getattr(torch.ops.aten, name).default._schema
    assert [argument.name for argument in schema.arguments] == ARGUMENTS[name], sentence
    assert [argument.name for argument in schema.arguments if argument.kwarg_only] == ["attn_mask", "scale"], sentence


def test_log_sum_exp_by_hand():
    from mrg.modules.prefix.attention import flash_forward

    query, key, value = (torch.randn(1, heads, 3, 4, dtype=torch.float64) for heads in (4, 2, 2))
    output, lse = flash_forward(query, key, value, 0.0, False, scale=0.5)
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 0.5
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    torch.testing.assert_close(output, scores.softmax(-1) @ value.repeat_interleave(2, 1))


def test_the_kernels_are_used_in_one_file():
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mrg").rglob("*.py")
        if re.search(r"_scaled_dot_product|ops\.aten", path.read_text(encoding="utf-8"))
    }
    assert users == {"mrg/modules/prefix/attention.py"}
