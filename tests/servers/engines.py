"""A vLLM server, and what its tests and those of the engine in the trainer's process compare."""

import contextlib
import os
import signal
import socket
import subprocess
import time

import requests
import torch

from mrg.modules.rollout.sampling import sample

RANK = 4


class Server:
    """One vLLM server of a folder, started and ended by the test."""

    def __init__(self, program, folder, log):
        self.program, self.folder, self.log = program, folder, log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = [
            str(self.program), "serve", str(self.folder), "--served-model-name", "tiny", "--host", "127.0.0.1",
            "--port", str(self.port), "--enable-lora", "--max-lora-rank", "8", "--max-model-len", "512",
            "--enforce-eager", "--dtype", "float32", "--limit-mm-per-prompt", '{"image": 2}',
            "--logprobs-mode", "processed_logprobs",
        ]  # fmt: skip
        setting = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**kept, **setting}, start_new_session=True
            )

    def wait(self):
        for _ in range(300):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(1)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def kill(self):
        """The whole session at once, as a machine that loses power."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def seeds(batch):
    return {row: 10 + row for row in range(len(batch))}


def local(policy, batch, group_size=1, temperature=0.0, generator=None):
    with torch.no_grad():
        return sample(policy, policy.embed(batch), group_size, 16, temperature, generator)


def same_tokens(a, b):
    return torch.equal(a.completion_ids, b.completion_ids) and torch.equal(a.completion_mask, b.completion_mask)


def assert_same(found, expected):
    """Greedy completions and their log-probabilities."""
    assert same_tokens(found, expected)
    torch.testing.assert_close(found.old_logps, expected.old_logps, atol=1e-4, rtol=0)
    assert found.texts == expected.texts
    assert torch.equal(found.truncated, expected.truncated)


def negate(policy):
    """Change the adapter."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.neg_()


def assert_greedy_tokens_follow_the_adapter(engine, update, policy, unadapted, batch):
    """An engine without an adapter, with the policy's, and with the policy's after a change.

    Args:
        update: Function of the index of a round; gives the engine the policy's adapter.
    """
    base = local(unadapted, batch)
    assert_same(engine.sample(batch, seeds(batch), 1, 16, 0.0), base)
    update(0)
    adapted = local(policy, batch)
    assert not same_tokens(adapted, base)
    second = engine.sample(batch, seeds(batch), 1, 16, 0.0)
    assert_same(second, adapted)
    negate(policy)
    update(1)
    third = engine.sample(batch, seeds(batch), 1, 16, 0.0)
    assert same_tokens(third, local(policy, batch))
    assert not same_tokens(third, second)


def assert_sampled_groups_come_from_the_policys_distribution(engine, policy, batch):
    rollout = engine.sample(batch, seeds(batch), 6, 16, 0.7)
    assert rollout.completion_ids.shape[0] == len(batch) * 6
    with torch.no_grad():
        own = policy.logps(policy.embed(batch), rollout.completion_ids, rollout.completion_mask, 0.7).logps
    torch.testing.assert_close(rollout.old_logps, own, atol=1e-3, rtol=0)
    assert len({tuple(row) for row in rollout.completion_ids[:6].tolist()}) > 1
    assert not torch.isin(rollout.completion_ids[rollout.completion_mask], torch.tensor(policy.banned_ids)).any()
    some = engine.sample(batch, {2: 12, 1: 11}, 6, 16, 0.7)
    assert some.completion_ids.shape[0] == 12
