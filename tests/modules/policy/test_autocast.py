"""An adapter that is cast once computes what autocast computes by casting it in every step, bit for bit."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mrg.modules.policy.autocast import CastAdapter
from mrg.modules.rollout.kv_cache import KVCache
from mrg.modules.rollout.static_cache import StaticDecoder
from tests.modules.rollout.test_kv_cache import GROUP, NUM_TOKENS, ending_policy
from tests.modules.rollout.test_static_cache import assert_same, prompts_for, write


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
    monkeypatch.setattr(CastAdapter, "within", lambda self, layers: contextlib.nullcontext())
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
