"""Trained weights are held in float32 and move as they would there, frozen ones are not; adapters are cast once."""

import contextlib
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText

from mrg.datamodules.collate import StudyCollator
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.precision import CastAdapter, float32_depthwise
from mrg.modules.rollout.kv_cache import KVCache
from mrg.modules.rollout.sampling import sample
from mrg.modules.rollout.static_cache import StaticDecoder
from mrg.modules.sft import SFTModule
from tests.families import QWEN, unequal_studies
from tests.family_checkpoints import BUILDERS, save_checkpoint
from tests.modules.rollout.test_kv_cache import GROUP, NUM_TOKENS, ending_policy
from tests.modules.rollout.test_static_cache import assert_same, prompts_for, write
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness, trainer, weights
from tests.nested import nested

KINDS = (*QWEN, *sorted(BUILDERS))
HALF, WHOLE = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint in bfloat16 of each family."""
    return {kind: save_checkpoint(kind, tmp_path_factory.mktemp(kind), HALF) for kind in KINDS}


@pytest.fixture
def half(policy, tmp_path):
    policy.to(HALF).save(tmp_path / "half")
    return str(tmp_path / "half")


@pytest.mark.parametrize(("lora", "train_vision"), [(None, False), (None, True), (LoRA(4), True)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_float32_and_mixed_precisions_meet(folders, kind, lora, train_vision, tmp_path):
    """Gradients reach all that float32 reaches, with and without autocast, and a save rounds nothing that is whole."""
    whole = load_policy(folders[kind], lora, train_vision, "float32")
    policy = load_policy(folders[kind], lora, train_vision)
    dtypes = {name: p.dtype for name, p in policy.named_parameters()}
    assert all((dtypes[n] == WHOLE) == p.requires_grad for n, p in policy.named_parameters())
    batch = StudyCollator(policy.processor, "Report:")(unequal_studies())
    with torch.no_grad():
        rollout = sample(whole, whole.embed(batch), 2, 6, generator=torch.Generator().manual_seed(0))
    ids, mask = rollout.completion_ids, rollout.completion_mask
    expected, reached = passed(whole, batch, ids, mask)
    for autocast in (False, True):
        policy.zero_grad()
        with torch.autocast("cpu", HALF, autocast, cache_enabled=False):
            logps, found = passed(policy, batch, ids, mask)
        assert found == reached
        assert logps.dtype == WHOLE
        if lora is None and not autocast:
            # A frozen tower computes in bfloat16, and a Gemma's scale of embeddings, no weight, was rounded on loading.
            most = 0.1 if not train_vision else 1e-3 if kind == "gemma3" else 1e-5
            assert (logps - expected).abs().mean() < most
    policy.save(tmp_path)
    again = dict(AutoModelForImageTextToText.from_pretrained(tmp_path).named_parameters())
    trained = {n: p for n, p in policy.base.named_parameters() if p.requires_grad and ".lora_" not in n}
    assert trained
    assert all(again[n].dtype == WHOLE and torch.equal(again[n], p) for n, p in trained.items())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def passed(policy, batch, ids, mask):
    """Log-probabilities, and the names of what a gradient reaches, through leaves as in a round of several passes."""
    prompts = policy.embed(batch)
    leaves = prompts.detached()
    logps = policy.logps(leaves, ids, mask).logps
    logps.sum().backward()
    prompts.send_back(leaves, lambda loss: loss.backward())
    return logps.detach(), {name for name, p in policy.named_parameters() if p.grad is not None}


def test_without_a_trained_part_the_checkpoint_stays_as_it_was(folders, tmp_path):
    policy = load_policy(folders["gemma3"], LoRA(4))
    assert {p.dtype for n, p in policy.named_parameters() if ".lora_" not in n} == {HALF}
    assert {p.dtype for n, p in policy.named_parameters() if ".lora_" in n} == {WHOLE}
    policy.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_policy(folders["gemma3"], LoRA(4), dtype="float32").base.dtype == WHOLE


def trained(half, studies, steps, kind=GRPOModule, precision="32-true", **settings):
    torch.manual_seed(0)
    options = {"lora": None, "warmup_steps": 1, "learning_rate": 1e-6, **SETTINGS, **settings}
    if kind is GRPOModule:
        options = {"group_size": 4, "kl_coef": 0.0, **options}
    module = kind(**nested(policy=half, **options))
    if kind is GRPOModule:
        module.reward = Shortness()
    lightning = trainer(steps, precision=precision)
    lightning.fit(module, FixedData(studies, batch_size=4))
    return module, lightning


@pytest.mark.parametrize(("precision", "least"), [("32-true", 0.999), ("bf16-mixed", 0.7)])
def test_small_steps_of_a_checkpoint_in_bfloat16_are_those_of_float32(half, studies, precision, least):
    """Held in bfloat16, a thousandth of the weights moved at this rate, and their cosine was .08."""
    start = weights(trained(half, studies, 0)[0])
    moves = []
    for dtype, chosen in (("float32", "32-true"), ("auto", precision)):
        module, lightning = trained(half, studies, 8, SFTModule, chosen, dtype=dtype)
        moves.append(torch.cat([(w - start[n]).flatten() for n, w in weights(module).items()]))
        states = lightning.optimizers[0].state.values()
        assert {x.dtype for state in states for name, x in state.items() if name != "step"} == {WHOLE}
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > least
    moved = [float((move != 0).double().mean()) for move in moves]
    assert moved[1] > 0.9 * moved[0] > 0.09


def test_a_copied_reference_is_float32_too(half, studies):
    module, _ = trained(half, studies, 2, reference="copy", kl_coef=0.5)
    assert {value.dtype for value in module.policy.reference_weights.values()} == {WHOLE}


def test_a_checkpoint_that_was_held_in_bfloat16_is_taken_up_in_float32(half, studies, tmp_path):
    """Written before what is trained was held so: its weights and moments are read, and go on in float32."""
    _, lightning = trained(half, studies, 2, SFTModule)
    lightning.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state["state_dict"] = {name: value.to(HALF) for name, value in state["state_dict"].items()}
    for moments in state["optimizer_states"][0]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name].to(HALF)
    torch.save(state, tmp_path / "last.ckpt")
    module = SFTModule(**nested(policy=half, warmup_steps=1, learning_rate=1e-6, **SETTINGS))
    lightning = trainer(3)
    lightning.fit(module, FixedData(studies, batch_size=4), ckpt_path=str(tmp_path / "last.ckpt"))
    now = weights(module)
    assert {value.dtype for value in now.values()} == {WHOLE}
    moments = [x for state in lightning.optimizers[0].state.values() for n, x in state.items() if n != "step"]
    assert {x.dtype for x in moments} == {WHOLE}
    moved = torch.cat([(now[n] - w.float()).flatten() for n, w in state["state_dict"].items()])
    assert 0 < moved.abs().max() < 1.1e-6  # a third step, from where the second had ended


def test_note_on_a_merged_policy(policy, half, tmp_path):
    rounded = " (merged weights are rounded: not exactly the policy that was scored"
    exact = f"{rounded}; for an exact copy use export --adapter true)"
    assert load_policy(half, LoRA(4)).merge_note() == exact
    assert load_policy(half, LoRA(4), load_in_4bit=True).merge_note() == exact
    assert load_policy(half, LoRA(4), dtype="float32", load_in_4bit=True).merge_note() == exact
    # An adapter alone does not hold the tower.
    assert load_policy(half, LoRA(4), True).merge_note() == f"{rounded})"
    assert load_policy(half, LoRA(4), dtype="float32").merge_note() == ""
    assert load_policy(half).merge_note() == policy.merge_note() == ""


def test_merged_from_4_bits_keeps_a_trained_tower_as_it_is(half, tmp_path):
    """The base is loaded again in its own precision, the tower is written in float32, beside what is merged."""
    policy = load_policy(half, LoRA(4), True, load_in_4bit=True)
    tower = {n: p for n, p in policy.base.named_parameters() if p.requires_grad and ".lora_" not in n}
    with torch.no_grad():
        for parameter in tower.values():
            parameter.add_(1e-6)
    policy.save(tmp_path / "merged")
    from safetensors.torch import load_file

    written = load_file(tmp_path / "merged" / "model.safetensors")
    named = {name: next(value for key, value in written.items() if key.endswith(name[6:])) for name in tower}
    assert all(torch.equal(named[name], parameter) for name, parameter in tower.items())
    assert {value.dtype for key, value in written.items() if "visual" not in key} == {HALF}
    again = dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").named_parameters())
    assert all(torch.equal(again[name], parameter) for name, parameter in tower.items())


# The adapter is cast once: this computes what autocast computes by casting it in every step, bit for bit.


def adapted(dtype, adapter=torch.float32):
    """A policy of these types; peft makes an adapter float32 whatever the base is."""
    policy = ending_policy(dtype=dtype)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter)
    return policy


def matrices(policy):
    return {name: p for name, p in policy.named_parameters() if "lora_" in name}


def autocast(**kwargs):
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False, **kwargs)


class Casts(TorchDispatchMode):
    """Counts casts of the adapter's matrices, by their shapes."""

    def __init__(self, policy):
        super().__init__()
        self.shapes, self.count = {p.shape for p in matrices(policy).values()}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::_to_copy", "aten::copy_"):
            self.count += result.shape in self.shapes and result.dtype == torch.bfloat16
        return result


@pytest.mark.parametrize("decoder", [None, StaticDecoder], ids=["shrinking", "fixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rollouts_are_the_same_bit_for_bit_and_each_matrix_is_cast_once(dtype, decoder, monkeypatch):
    policy = adapted(dtype)
    casts = []

    def counted():
        with autocast(), Casts(policy) as seen:
            rollout = write(policy, prompts_for(policy), decoder and decoder(), temperature=1.0)
        casts.append(seen.count)
        return rollout

    once = counted()
    monkeypatch.setattr(CastAdapter, "within", lambda self, matrices: contextlib.nullcontext())
    assert_same(once, counted(), 0.0)
    num_passes = once.completion_mask.shape[1]  # the prompts, and every token but the last
    assert casts == [len(matrices(policy)), num_passes * len(matrices(policy))]


def test_the_adapter_comes_back_itself(monkeypatch):
    policy = adapted(torch.bfloat16)
    before, values = matrices(policy), {name: p.detach().clone() for name, p in matrices(policy).items()}
    addresses = []
    for _ in range(2):
        with autocast(), policy.merged():
            inside = matrices(policy)
            assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in inside.values())
            assert all(torch.equal(p, values[name].bfloat16()) for name, p in inside.items())
        addresses.append([p.data_ptr() for p in inside.values()])
        assert all(p is before[name] and torch.equal(p, values[name]) for name, p in matrices(policy).items())
        with torch.no_grad():  # a step of training
            for name, parameter in before.items():
                values[name] = parameter.add_(0.1).detach().clone()
    assert addresses[0] == addresses[1]

    def fail(self, going):
        raise KeyboardInterrupt

    monkeypatch.setattr(KVCache, "compact", fail)
    with pytest.raises(KeyboardInterrupt), autocast():
        write(policy, prompts_for(policy))
    assert all(p is before[name] for name, p in matrices(policy).items())


def test_evaluation_in_inference_mode_comes_first():
    policy = adapted(torch.bfloat16)
    with torch.inference_mode(), autocast():
        expected = write(policy, prompts_for(policy), None, GROUP, 0.0)
    with autocast():
        prompts = prompts_for(policy)
        assert_same(write(policy, prompts, None, GROUP, 0.0), expected, 0.0)
        ids, mask = expected.completion_ids.clone(), expected.completion_mask.clone()
        assert ids.shape[1] <= NUM_TOKENS
        policy.logps(prompts, ids, mask).logps.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in matrices(policy).values())


@pytest.mark.parametrize("enabled", [True, False])
def test_only_what_autocast_would_cast_is_cast(enabled):
    policy = adapted(torch.bfloat16, torch.bfloat16 if enabled else torch.float32)
    before = matrices(policy)
    with autocast(enabled=enabled), policy.merged():
        assert all(p is before[name] for name, p in matrices(policy).items())


def test_depthwise_convolutions_stay_in_float32_under_autocast():
    depthwise, pointwise = torch.nn.Conv2d(4, 4, 3, groups=4, bias=False), torch.nn.Conv2d(4, 4, 1, bias=False)
    model = torch.nn.Sequential(depthwise, pointwise)
    pixels = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = depthwise(pixels)
    float32_depthwise(model)
    with torch.autocast("cpu", torch.bfloat16):
        inner = depthwise(pixels.bfloat16())
        assert torch.equal(depthwise(pixels), exact)
        assert inner.dtype == torch.float32
        assert model(pixels).dtype == torch.bfloat16
    assert set(model.state_dict()) == {"0.weight", "1.weight"}
