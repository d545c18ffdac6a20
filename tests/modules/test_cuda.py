"""The same on a CUDA GPU as on the CPU: log-probabilities, gradients, both attentions, tokens, rounds, 4-bit weights.

Skipped without a GPU; `--rehearse` runs the tests with the CPU in its place.
"""

import copy
import importlib.util

import lightning as L
import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.prefix.flex import Flex
from mrg.modules.rollout.compiled import CompiledDecoder
from mrg.modules.rollout.sampling import sample
from mrg.modules.rollout.static_cache import StaticDecoder
from tests.families import QWEN, family_policy, unequal_studies
from tests.family_checkpoints import BUILDERS
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness
from tests.nested import nested

GROUP = 4
TYPES = {torch.float32: (1e-4, 0.99999), torch.bfloat16: (0.1, 0.9)}
"""Type -> largest mean error of log-probabilities, least cosine of gradients; random models amplify rounding."""


@pytest.fixture(scope="module")
def device(request):
    if torch.cuda.is_available():
        return torch.device("cuda")
    if request.config.getoption("--rehearse"):
        return torch.device("cpu")
    pytest.skip("there is no CUDA GPU; --rehearse runs the tests on the CPU")


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """As on the CPU: by default, cuDNN rounds the pixels of a float32 convolution to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def loaded(checkpoints, family, **options):
    torch.manual_seed(0)
    pixels = SETTINGS["max_pixels"] if family in QWEN else 0
    policy = load_policy(checkpoints(family), LoRA(4), max_pixels=pixels, **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # an adapter that does something
        for parameter in (p for p in policy.parameters() if p.requires_grad):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def sampled(policy):
    """A batch and completions for it."""
    batch = StudyCollator(policy.processor, "Report:")(unequal_studies())
    with torch.no_grad():
        rollout = sample(policy, policy.embed(batch), GROUP, 12, generator=torch.Generator().manual_seed(0))
    return batch, rollout.completion_ids, rollout.completion_mask


def gradients(policy, batch, ids, mask, device, dtype, flex=None):
    """Log-probabilities and gradients of the adapter, on the CPU in float64."""
    policy = copy.deepcopy(policy).to(device)
    policy.flex = flex
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logps = policy.logps(policy.embed(batch.to(device)), ids.to(device), mask.to(device)).logps
        (logps * mask.to(device)).sum().backward()
    found = {name: p.grad.double().cpu() for name, p in policy.named_parameters() if p.grad is not None}
    return logps.detach().double().cpu(), torch.cat([grad.flatten() for grad in found.values()])


@pytest.mark.parametrize("dtype", list(TYPES), ids=str)
@pytest.mark.parametrize("family", [*QWEN, *BUILDERS])
def test_log_probabilities_and_gradients(checkpoints, family, dtype, device):
    policy = loaded(checkpoints, family)
    arguments = (policy, *sampled(policy))
    expected, whole = gradients(*arguments, torch.device("cpu"), torch.float32)
    assert_close(gradients(*arguments, device, dtype), (expected, whole), arguments[-1], dtype)


def assert_close(found, expected, mask, dtype):
    error, cosine = TYPES[dtype]
    assert (found[0] - expected[0])[mask.bool()].abs().mean() < error
    assert expected[1].norm() > 1e-3
    assert torch.cosine_similarity(found[1], expected[1], dim=0) > cosine


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_rounds(checkpoints, precision, device):
    path = checkpoints(QWEN[0])  # before the seed: writing it draws random numbers

    def run(accelerator, precision):
        torch.manual_seed(0)
        options = {"lora": LoRA(4), "learning_rate": 1e-2, "warmup_steps": 0, "group_size": GROUP, **SETTINGS}
        module = GRPOModule(**nested(policy=path, **options))
        module.reward = Shortness()
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = L.Trainer(
            max_epochs=2, accelerator=accelerator, devices=1, precision=precision, enable_model_summary=False,
            num_sanity_val_steps=0, **quiet,
        )  # fmt: skip
        data = FixedData(unequal_studies(), batch_size=3)
        trainer.fit(module, data)
        trained = {name: p for name, p in module.policy.named_parameters() if p.requires_grad}
        return torch.cat([p.detach().cpu().flatten() for name, p in trained.items() if "lora_B" in name])

    # Matrices B start at 0, so that they are the sum of all steps; Adam turns rounding of a small gradient into a step.
    there, here = run("cuda" if device.type == "cuda" else "cpu", precision), run("cpu", "32-true")
    assert here.norm() > 1e-3
    assert torch.cosine_similarity(there, here, dim=0) > (0.95 if precision == "32-true" else 0.3)  # 0.49 on a CPU


@pytest.mark.parametrize("dtype", list(TYPES), ids=str)
def test_a_4_bit_base(checkpoints, dtype, device):
    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("accelerate") is None:
        pytest.skip("bitsandbytes or accelerate is not installed")
    policy = loaded(checkpoints, QWEN[0])
    arguments = sampled(policy)
    whole, _ = gradients(policy, *arguments, torch.device("cpu"), torch.float32)

    def quantized(*place):
        return gradients(loaded(checkpoints, QWEN[0], load_in_4bit=True), *arguments, *place)

    expected = quantized(torch.device("cpu"), torch.float32)
    assert (expected[0] - whole)[arguments[-1].bool()].abs().mean() > 1e-3
    assert_close(quantized(device, dtype), expected, arguments[-1], dtype)


DECODERS = {"shrinking": lambda: None, "fixed": StaticDecoder, "compiled": CompiledDecoder}
FLOATS = [(dtype, name) for dtype in TYPES for name in DECODERS if name != "compiled" or dtype == torch.bfloat16]
"""Compiling takes long, and is tested in float32 with greedy tokens."""


@pytest.mark.parametrize(("dtype", "decoder"), FLOATS, ids=str)
def test_sampled_tokens(dtype, decoder, device):
    """Their log-probabilities are those of the loss, also where weights are held in bfloat16."""
    policy = family_policy("qwen2_5_vl", dtype=dtype).eval().to(device)
    batch = StudyCollator(policy.processor, "Report:")(unequal_studies()).to(device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        prompts = policy.embed(batch)
        rollout = sample(policy, prompts, GROUP, 30, 1.0, generator, DECODERS[decoder]())
        again = policy.logps(prompts, rollout.completion_ids, rollout.completion_mask).logps
    gap = ((again - rollout.old_logps).abs().sum() / rollout.completion_mask.sum()).item()
    assert len(set(rollout.texts)) > 1
    assert gap < (1e-4 if dtype == torch.float32 else 0.025)


@pytest.mark.parametrize("decoder", DECODERS)
def test_greedy_tokens(checkpoints, decoder, device):
    policy = loaded(checkpoints, QWEN[0])
    batch = StudyCollator(policy.processor, "Report:")(unequal_studies())
    with torch.no_grad():
        expected = sample(policy, policy.embed(batch), 1, 16, 0.0)
        there = copy.deepcopy(policy).to(device)
        found = sample(there, there.embed(batch.to(device)), 1, 16, 0.0, decoder=DECODERS[decoder]())
    assert found.texts == expected.texts


@pytest.mark.parametrize("dtype", list(TYPES), ids=str)
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_flex(checkpoints, family, dtype, device):
    """Without a sliding window, and with one and image blocks; heads of 16, the fewest that it takes."""
    policy = loaded(checkpoints, family)
    arguments = (policy, *sampled(policy))
    expected = gradients(*arguments, device, dtype)
    found = gradients(*arguments, device, dtype, state := Flex())
    assert len(state.agrees) == (2 if family == "gemma3" else 1)
    assert set(state.agrees.values()) == {device.type == "cuda"}  # without a GPU it has no gradients, and is not used
    assert_close(found, expected, arguments[-1], dtype)
