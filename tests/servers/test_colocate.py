"""vLLM in this process.

bash tests/servers/build_vllm.sh && .vllm/bin/python -m pytest -n 0 -m vllm tests/servers/test_colocate.py
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.colocate import Colocate, ColocatedEngine
from mrg.modules.rollout.vllm import VLLMClient
from mrg.modules.rollout.vllm_servers import Servers
from tests.modules.test_grpo import trainer
from tests.servers.colocate_on_ranks import SETTING, fit
from tests.servers.engines import (
    RANK,
    Server,
    assert_greedy_tokens_follow_the_adapter,
    assert_same,
    assert_sampled_groups_come_from_the_policys_distribution,
    local,
    negate,
    same_tokens,
    seeds,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not in this environment"),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def small():
    """A gibibyte of KV cache, and no cores of its own."""
    given = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def server(saved, small, request, tmp_path_factory):
    """A server, which is started before the engine: it would inherit what vLLM sets in this process."""
    program = request.config.getoption("vllm") / "bin" / "vllm"
    started = Server(program, saved, tmp_path_factory.mktemp("logs") / "server.log")
    try:
        started.wait()
        yield started
    finally:
        started.kill()


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


def test_greedy_tokens_equal_those_of_a_server_and_of_the_policy(server, engine, policy, batch, tmp_path):
    engine.synchronize(0, None)
    # The first request to a server compiles, which takes minutes where other processes use the cores.
    remote = VLLMClient(Servers([server.url], timeout=300), policy, tmp_path.name)
    remote.pool.check()
    remote.adapter = remote.publish(tmp_path / "adapters", 0)
    expected = remote.sample(batch, seeds(batch), 1, 16, 0.0)
    found = engine.sample(batch, seeds(batch), 1, 16, 0.0)
    assert_same(found, expected)
    assert_same(found, local(policy, batch))
    with torch.autocast("cpu", torch.bfloat16):  # as in a training step; the engine has its own type
        assert torch.equal(engine.sample(batch, seeds(batch), 1, 16, 0.0).old_logps, found.old_logps)


def test_greedy_tokens_equal_those_of_the_policy_and_follow_the_adapter(engine, policy, unadapted, batch):
    engine.adapter = None
    assert_greedy_tokens_follow_the_adapter(
        engine, lambda index: engine.synchronize(index, None), policy, unadapted, batch
    )
    before = engine.sample(batch, seeds(batch), 1, 16, 0.0)
    negate(policy)
    engine.synchronize(1, None)  # the same round: the adapter of its start
    assert same_tokens(engine.sample(batch, seeds(batch), 1, 16, 0.0), before)


def test_sampled_groups_come_from_the_policys_distribution(engine, policy, batch):
    engine.synchronize(0, None)
    before = torch.get_rng_state()
    assert_sampled_groups_come_from_the_policys_distribution(engine, policy, batch)
    assert torch.equal(torch.get_rng_state(), before)
    engine.settings = Colocate(max_length=20)
    with pytest.raises(ValueError, match=r"Study .*: expected at most 20 tokens of prompt and completion"):
        engine.sample(batch, seeds(batch), 1, 16, 0.0)
    engine.settings = SETTING


def test_training_follows_the_engine_and_a_resumed_run_equals_one_that_was_not_interrupted(saved, studies, tmp_path):
    whole, rollouts, gaps = fit(saved, studies, tmp_path / "whole", 4)
    assert len(gaps) == len(rollouts) == 4
    assert all(gap < 1e-3 for gap in gaps)  # each round is sampled by the policy as it is then
    fit(saved, studies, tmp_path / "half", 2)
    path = tmp_path / "half" / "checkpoints" / "round-00000002.ckpt"
    assert torch.load(path, weights_only=True)["engine"].startswith("vLLM 0.")
    resumed, again, _ = fit(saved, studies, tmp_path / "resumed", 4, str(path))
    assert len(again) == 2
    for a, b in zip(again, rollouts[2:], strict=True):
        assert same_tokens(a, b)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-5, rtol=0)


def test_two_processes_have_an_engine_each(saved, tmp_path):
    command = [sys.executable, "-m", "tests.servers.colocate_on_ranks", str(saved), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for _, rollouts, gaps in ranks:
        assert len(rollouts) == len(gaps) == 2
        assert all(gap < 1e-3 for gap in gaps)  # each engine has the adapter that both have trained
    assert not same_tokens(ranks[0][1][0], ranks[1][1][0])
    for name, value in ranks[0][0].items():
        assert torch.equal(value, ranks[1][0][name]), name


def test_too_little_memory_is_one_line_that_names_the_setting(saved, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    policy = load_policy(str(saved), LoRA(RANK, 8)).eval()
    with pytest.raises(
        ValueError, match=r"does not start in this process .*rollout.colocate.memory \(0.0001\)"
    ) as caught:
        ColocatedEngine(Colocate(memory=0.0001, max_length=512, eager=True), policy, str(saved), 2, trainer(1))
    assert "\n" not in str(caught.value)
