"""vLLM in this process.

bash tests/servers/build_vllm.sh && .vllm/bin/python -m pytest tests/servers/test_colocate.py
"""

import importlib.util
import os

import lightning as L
import pytest
import torch

from mrg.callbacks.checkpoint import Checkpoints
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.colocate import Colocate, ColocatedEngine
from mrg.modules.rollout.vllm import VLLMClient
from mrg.modules.rollout.vllm_servers import Servers
from tests.modules.test_grpo import SETTINGS, FixedData, trainer, weights
from tests.nested import nested
from tests.servers.engines import RANK, Server, local, same_tokens, seeds

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not in this environment"),
]

SETTING = Colocate(max_length=512, eager=True)


@pytest.fixture(scope="module", autouse=True)
def small():
    """A gibibyte of KV cache, and no cores of its own."""
    given = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def started(saved, small):
    """An engine; tests give it their policy."""
    policy = load_policy(str(saved), LoRA(RANK, 8)).eval()
    before = torch.get_rng_state()
    engine = ColocatedEngine(SETTING, policy, str(saved), 2, trainer(1))
    assert torch.equal(torch.get_rng_state(), before)  # an engine is seeded, and training does not notice
    assert "RANK" not in os.environ
    return engine


@pytest.fixture
def engine(started, policy):
    started.policy, started.contents.policy, started.last_sync = policy, policy, -1
    return started


def test_greedy_tokens_equal_those_of_the_policy_and_of_a_server_and_follow_the_adapter(
    engine, policy, unadapted, batch, tmp_path, saved, request
):
    engine.adapter = None
    base = local(unadapted, batch)
    first = engine.sample(batch, seeds(batch), 1, 16, 0.0)
    assert same_tokens(first, base)
    torch.testing.assert_close(first.old_logps, base.old_logps, atol=1e-4, rtol=0)
    assert first.texts == base.texts
    assert torch.equal(first.truncated, base.truncated)

    engine.synchronize(0, None)
    adapted = local(policy, batch)
    assert not same_tokens(adapted, base)
    second = engine.sample(batch, seeds(batch), 1, 16, 0.0)
    assert same_tokens(second, adapted)
    torch.testing.assert_close(second.old_logps, adapted.old_logps, atol=1e-4, rtol=0)

    server = Server(request.config.getoption("vllm") / "bin" / "vllm", saved, tmp_path / "server.log")
    try:
        server.wait()
        remote = VLLMClient(Servers([server.url], timeout=60), policy, tmp_path.name)
        remote.pool.check()
        remote.adapter = remote.publish(tmp_path / "adapters", 0)
        assert same_tokens(remote.sample(batch, seeds(batch), 1, 16, 0.0), second)
    finally:
        server.kill()

    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.neg_()
    engine.synchronize(0, None)  # the same round: the adapter of its start
    assert same_tokens(engine.sample(batch, seeds(batch), 1, 16, 0.0), second)
    engine.synchronize(1, None)
    third = engine.sample(batch, seeds(batch), 1, 16, 0.0)
    assert same_tokens(third, local(policy, batch))
    assert not same_tokens(third, second)


def test_sampled_groups_come_from_the_policys_distribution(engine, policy, batch):
    engine.synchronize(0, None)
    before = torch.get_rng_state()
    rollout = engine.sample(batch, seeds(batch), 6, 16, 0.7)
    assert torch.equal(torch.get_rng_state(), before)
    assert rollout.completion_ids.shape[0] == len(batch) * 6
    with torch.no_grad():
        own = policy.logps(policy.embed(batch), rollout.completion_ids, rollout.completion_mask, 0.7).logps
    torch.testing.assert_close(rollout.old_logps, own, atol=1e-3, rtol=0)
    assert len({tuple(row) for row in rollout.completion_ids[:6].tolist()}) > 1
    assert not torch.isin(rollout.completion_ids[rollout.completion_mask], torch.tensor(policy.banned_ids)).any()
    some = engine.sample(batch, {2: 12, 1: 11}, 6, 16, 0.7)
    assert some.completion_ids.shape[0] == 12
    engine.settings = Colocate(max_length=50)
    with pytest.raises(ValueError, match=r"Study .*: expected at most 50 tokens of prompt and completion"):
        engine.sample(batch, seeds(batch), 1, 16, 0.0)
    engine.settings = SETTING


def fit(saved, studies, folder, steps, checkpoint=None):
    """Weights after some rounds, and the completions of each round."""
    torch.manual_seed(0)
    module = GRPOModule(**nested(
        policy=str(saved), lora=LoRA(RANK), group_size=4, learning_rate=1e-2, warmup_steps=1, mask_truncated=False,
        colocate=SETTING, **SETTINGS,
    ))  # fmt: skip
    logged, rollouts, sampled = [], [], module.rollout
    module.log = lambda name, value, **_: logged.append((name, float(value)))
    module.rollout = lambda *args: rollouts.append(sampled(*args)) or rollouts[-1]
    run = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, callbacks=[Checkpoints(folder, save_every=2)],
    )  # fmt: skip
    run.fit(module, FixedData(studies[:4], batch_size=4), ckpt_path=checkpoint)
    gaps = [value for name, value in logged if name == "train/logp_gap"]
    return weights(module), rollouts, gaps


def test_training_follows_the_engine_and_a_resumed_run_equals_one_that_was_not_interrupted(saved, studies, tmp_path):
    whole, rollouts, gaps = fit(saved, studies, tmp_path / "whole", 4)
    assert len(gaps) == len(rollouts) == 4
    assert all(gap < 1e-3 for gap in gaps)  # each round is sampled by the policy as it is then
    path = tmp_path / "whole" / "checkpoints" / "round-00000002.ckpt"
    assert torch.load(path, weights_only=True)["engine"].startswith("vLLM 0.")
    resumed, again, _ = fit(saved, studies, tmp_path / "resumed", 4, str(path))
    assert len(again) == 2
    for a, b in zip(again, rollouts[2:], strict=True):
        assert same_tokens(a, b)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-5, rtol=0)


def test_too_little_memory_is_one_line_that_names_the_setting(saved, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    policy = load_policy(str(saved), LoRA(RANK, 8)).eval()
    with pytest.raises(
        ValueError, match=r"does not start in this process .* rollout.colocate.memory \(0.0001\)"
    ) as caught:
        ColocatedEngine(Colocate(memory=0.0001, max_length=512, eager=True), policy, str(saved), 2, trainer(1))
    assert "\n" not in str(caught.value)
