"""A language model in 4 bits, on the CPU: what is quantised, and that it computes as its dequantised weights do."""

import re

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from mrg.commands.size.memory import NF4_BYTES
from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy import quantization
from mrg.modules.policy.families import FAMILIES
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.sampling import sample
from tests.checkpoints import save_published_format
from tests.families import QWEN
from tests.family_checkpoints import BUILDERS, save_checkpoint

KINDS = [*QWEN, *sorted(BUILDERS)]
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDTHS = {"hidden_size": 64, "intermediate_size": 128}
"""Whole blocks of 64 weights in a row, as in published models."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for kind in KINDS:
        heads = {"num_attention_heads": 8, "num_key_value_heads": 4} if kind in QWEN else {}
        dtype = torch.bfloat16 if kind in QWEN else torch.float32
        found[kind] = save_checkpoint(kind, tmp_path_factory.mktemp(kind), dtype, **WIDTHS, **heads)
    return found


def quantised(folder, dtype="float32", **options):
    """A policy in 4 bits whose adapter changes something."""
    torch.manual_seed(1)
    policy = load_policy(folder, LoRA(4), dtype=dtype, load_in_4bit=True, **options).eval()
    randomise(policy)
    return policy


def randomise(policy):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.1, generator=generator)


def dequantised(policy, folder, dtype="float32"):
    """The same with whole layers that hold the dequantised weights."""
    whole = load_policy(folder, LoRA(4), dtype=dtype).eval()
    layers = dict(whole.named_modules())
    with torch.no_grad():
        for name, module in policy.named_modules():
            if isinstance(module, Linear4bit):
                assert not isinstance(layers[name], Linear4bit)
                layers[name].weight.copy_(dequantize_4bit(module.weight.data, module.weight.quant_state))
    randomise(whole)
    return whole


def completions(policy, rows=6, length=7):
    allowed = torch.tensor(sorted(set(range(len(policy.processor.tokenizer))) - set(policy.banned_ids)))
    generator = torch.Generator().manual_seed(0)
    ids = allowed[torch.randint(0, len(allowed), (rows, length), generator=generator)]
    return ids, torch.arange(length) < torch.tensor([7, 2, 5, 6, 1, 4])[:, None]


def logps_and_gradients(policy, batch, way="auto"):
    policy.shared_prefix = way
    policy.zero_grad()
    ids, mask = completions(policy)
    logps = policy.logps(policy.embed(batch), ids, mask).logps
    (logps * torch.linspace(-1, 1, logps.numel()).view(logps.shape)).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}


def assert_close(got, expected, atol):
    """Log-probabilities within `atol` nats, gradients of every adapter weight within `atol` of their norm."""
    assert (got[0] - expected[0]).abs().max() < atol
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.norm() > 0, name
        assert (got[1][name] - gradient).norm() < atol * gradient.norm(), name


def test_bitsandbytes_still_has_what_is_set():
    layer = Linear4bit(64, 64, compress_statistics=True, quant_type="nf4").to("cpu")
    for owner, names in (
        (layer, ("compute_dtype", "compute_type_is_set", "support_avx512bf16_for_cpu")),
        (layer.weight, ("quant_state",)),
        (layer.weight.quant_state, ("dtype",)),
    ):
        missing = [name for name in names if not hasattr(owner, name)]
        assert not missing, (
            f"bitsandbytes {bitsandbytes.__version__}: {type(owner).__name__} has no {missing}, which "
            "mrg/modules/policy/quantization.py needs: adapt it there."
        )


@pytest.fixture
def batch_of(studies):
    return lambda policy: StudyCollator(policy.processor, "Report:")(studies[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_that_are_adapted_are_in_4_bits_and_no_others(folders, kind):
    model = quantised(folders[kind], "auto").base
    num_layers = model.config.text_config.num_hidden_layers
    expected = {(layer, name) for layer in range(num_layers) for name in ADAPTED}
    found = set()
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            place = re.fullmatch(r"model\.language_model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)\.base_layer", name)
            assert place, name
            found.add((int(place[1]), place[3]))
    assert found == expected
    # The vision tower, the projector, the embedding, norms and the head: bit for bit those of the checkpoint.
    own = model.state_dict()
    plain = AutoModelForImageTextToText.from_pretrained(folders[kind])
    kept = [name for name in plain.state_dict() if not name.endswith(tuple(f"{part}.weight" for part in ADAPTED))]
    kept = [*kept, *(name for name in plain.state_dict() if "language_model" not in name)]
    for part in (*FAMILIES[model.config.model_type].vision, "lm_head", "embed_tokens"):
        assert any(part in name for name in kept), part
    for name in kept:
        linear = re.sub(r"\.(\w+_proj)\.bias$", r".\1.base_layer.bias", name) if "language_model" in name else name
        assert torch.equal(own[linear], plain.state_dict()[name]), name
    tied = plain.lm_head.weight is plain.get_input_embeddings().weight
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied == plain.config.tie_word_embeddings


def test_other_layers_in_4_bits_are_refused(folders):
    """What a bare name skips differs between releases of transformers: nothing, in the present one."""
    for skipped, first in (["visual", "lm_head"], "model.visual"), ([r"model\.visual", "lm_head", "q_proj"], "q_proj"):
        options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skipped)
        model = AutoModelForImageTextToText.from_pretrained(folders["qwen2_5_vl"], quantization_config=options)
        with pytest.raises(ValueError, match=rf"and no others, but \d+ differ, such as \S*{re.escape(first)}"):
            quantization.prepare_quantized(model)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_shared_and_repeated_agree(folders, batch_of, kind):
    """In float32 to its rounding."""
    policy = quantised(folders[kind])
    batch = batch_of(policy)
    repeated = logps_and_gradients(policy, batch, "off")
    assert_close(logps_and_gradients(policy, batch, "required"), repeated, 1e-4)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3"])
def test_prompts_shared_and_repeated_agree_in_bfloat16(folders, batch_of, kind):
    """Eight bits of a number are kept, a relative error of 2^-9 for each operation, of some tens one after another."""
    policy = quantised(folders[kind], "bfloat16")
    batch = batch_of(policy)
    repeated = logps_and_gradients(policy, batch, "off")
    assert_close(logps_and_gradients(policy, batch, "required"), repeated, 40 * 2**-9 * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_policy_of_the_dequantised_weights(folders, batch_of, kind):
    """In float32 to its rounding; whole weights give something else, so that what is compared is quantised."""
    policy = quantised(folders[kind])
    batch = batch_of(policy)
    got = logps_and_gradients(policy, batch)
    assert_close(got, logps_and_gradients(dequantised(policy, folders[kind]), batch), 1e-4)
    whole = load_policy(folders[kind], LoRA(4), dtype="float32").eval()
    randomise(whole)
    assert (got[0] - logps_and_gradients(whole, batch)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_policy_of_the_dequantised_weights_in_bfloat16(folders, batch_of, kind):
    """To the last bit, with an adapter whose update is still 0.

    Later, peft rounds the update before it is added to what a layer in 4 bits gives, and after it elsewhere.
    """
    policy = quantised(folders[kind], "bfloat16")
    whole = dequantised(policy, folders[kind], "bfloat16")
    for each in (policy, whole):
        for name, parameter in each.named_parameters():
            if ".lora_B." in name:
                parameter.data.zero_()
    batch = batch_of(policy)
    got, expected = logps_and_gradients(policy, batch), logps_and_gradients(whole, batch)
    assert torch.equal(got[0], expected[0])
    for name, gradient in expected[1].items():
        assert torch.equal(got[1][name], gradient), name
        assert (gradient.norm() > 0) == (".lora_B." in name), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_writing_leaves_weights_and_gradients_as_they_are(folders, batch_of, dtype):
    """On some processors, bitsandbytes would rearrange weights in eval mode, and gradients would end there."""
    policy = quantised(folders["qwen2_5_vl"], dtype)
    batch = batch_of(policy)
    frozen = {name: p.clone() for name, p in policy.named_parameters() if not p.requires_grad}
    before = logps_and_gradients(policy, batch)
    rollout = sample(policy, policy.embed(batch), 3, 10, generator=torch.Generator().manual_seed(0))
    after = logps_and_gradients(policy.train(), batch)
    assert torch.equal(after[0], before[0])
    assert all(torch.equal(after[1][name], gradient) for name, gradient in before[1].items())
    assert all(torch.equal(p, frozen[name]) for name, p in policy.named_parameters() if name in frozen)
    again = policy.logps(policy.embed(batch), rollout.completion_ids, rollout.completion_mask).logps
    gap = (again.detach() - rollout.old_logps)[rollout.completion_mask].abs().mean()
    assert gap < (1e-5 if dtype == "float32" else 0.02)


def test_gradient_checkpointing_and_a_trained_vision_tower(folders, batch_of):
    plain = quantised(folders["qwen2_5_vl"], train_vision=True)
    batch = batch_of(plain)
    expected = logps_and_gradients(plain.train(), batch)
    assert any("visual" in name for name in expected[1])
    less = quantised(folders["qwen2_5_vl"], train_vision=True, gradient_checkpointing=True)
    assert_close(logps_and_gradients(less.train(), batch), expected, 1e-4)


def test_the_reference_is_the_base_in_4_bits(folders, batch_of):
    policy = quantised(folders["qwen2_5_vl"])
    batch, (ids, mask) = batch_of(policy), completions(policy)
    base = dequantised(policy, folders["qwen2_5_vl"])
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            parameter.data.zero_()
    with torch.no_grad(), policy.reference():
        reference = policy.logps(policy.embed(batch), ids, mask).logps
    expected = base.logps(base.embed(batch), ids, mask).logps
    assert (reference - expected).abs().max() < 1e-4
    assert (policy.logps(policy.embed(batch), ids, mask).logps - reference).abs().max() > 0.1


def test_bytes_of_a_weight():
    """Codes, scales of 64 weights in a byte, and scales of 256 such scales: 4.127 bits; the tables are the rest."""
    layer = Linear4bit(1024, 2048, bias=False, compress_statistics=True, quant_type="nf4")
    layer.weight.data.normal_()
    layer = layer.to("cpu")
    state = layer.weight.quant_state
    parts = (layer.weight.data, state.absmax, state.state2.absmax)
    held = sum(part.numel() * part.element_size() for part in parts)
    assert held == pytest.approx(1024 * 2048 * NF4_BYTES, rel=1e-4)
    tables = (state.code, state.state2.code, state.offset)
    assert sum(part.numel() * part.element_size() for part in tables) == 4 * (16 + 256 + 1)


def test_bad_settings(folders, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"cannot be trained: set model\.init_args\.lora"):
        load_policy(folders["llava"], load_in_4bit=True)
    with pytest.raises(ValueError, match=r"but trainer\.accelerator chose mps: set load_in_4bit to false"):
        quantization.check_device(torch.device("mps"))
    quantization.check_device(torch.device("cpu"))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.46.0")
    with pytest.raises(
        ValueError, match=rf"needs bitsandbytes {quantization.OLDEST} or newer, but 0\.46\.0 is installed"
    ):
        load_policy(folders["llava"], LoRA(4), load_in_4bit=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes: pip install -e '\.\[qlora\]' in the checkout"):
        quantization.quantization_config("llava")


def test_a_checkpoint_that_is_quantised_itself_is_refused(tmp_path, studies):
    save_published_format(tmp_path, [study.report for study in studies])
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=options).save_pretrained(tmp_path / "q")
    with pytest.raises(ValueError, match="is quantized, so that no adapter can be merged into it"):
        load_policy(str(tmp_path / "q"), LoRA(4))


def test_the_whole_base_is_gone(folders, studies, tmp_path):
    save_published_format(tmp_path, [study.report for study in studies])
    policy = quantised(str(tmp_path))
    assert not any(isinstance(m, Linear4bit) for m in quantization.load_whole_base(policy.base).modules())
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded .*export --adapter true") as error:
        policy.save(tmp_path / "out")
    assert "\n" not in str(error.value)
    assert isinstance(policy.base.lm_head, nn.Linear)
