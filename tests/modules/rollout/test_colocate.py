"""What surrounds vLLM in this process, with a recorder in its place: sleep mode needs a GPU, tests/servers has vLLM."""

import collections
import contextlib
import os
import random
import sys
import types

import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.errors import RunError
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.colocate import GIB, Colocate, ColocatedEngine

TOKENS, THREADS = [5, 6, 7], 3
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS")


class Recorder:
    """Records its calls, and changes the state of the process as vLLM does.

    Awake it takes the share of memory that it was given; asleep it keeps 2 GiB.
    """

    calls, total, others, fails = [], 80 * GIB, 0, False

    def __init__(self, model, **options):
        Recorder.options, Recorder.variables = options, {name: os.environ.get(name) for name in NAMES}
        self.whole, self.awake, self.batch = int(options["gpu_memory_utilization"] * self.total), True, None
        Recorder.engine = self
        Recorder.calls = ["start"]
        torch.set_num_threads(THREADS)

    @classmethod
    def free(cls, device=None):
        engine = cls.engine
        own = 0 if engine is None else engine.whole if engine.awake else 2 * GIB
        return cls.total - cls.others - own, cls.total

    def sleep(self, level):
        self.calls.append(f"sleep {level}")
        self.awake = False

    def wake_up(self):
        self.calls.append("wake up")
        self.awake = True

    def chat(self, messages, settings, use_tqdm, lora_request):
        self.calls.append("chat")
        assert self.awake or "sleep 1" not in self.calls
        Recorder.seen = torch.get_num_threads(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        random.seed(1)
        torch.manual_seed(1)
        if self.fails:
            raise RuntimeError("an illegal memory access was encountered")
        output = types.SimpleNamespace(
            token_ids=TOKENS, logprobs=[{token: types.SimpleNamespace(logprob=-0.5)} for token in TOKENS]
        )
        prompts = (self.batch.prompt_ids[i][self.batch.prompt_mask[i]].tolist() for i in range(len(messages)))
        return [
            types.SimpleNamespace(prompt_token_ids=prompt, outputs=[output] * setting["n"])
            for prompt, setting in zip(prompts, settings, strict=True)
        ]


@pytest.fixture(scope="module")
def saved(studies, tmp_path_factory):
    from mrg.modules.policy.tiny import Tiny, tiny_policy

    folder = tmp_path_factory.mktemp("policy")
    tiny_policy([s.report for s in studies], Tiny(64, vision_depth=1, vocab_size=400)).save(folder)
    return str(folder)


@pytest.fixture
def adapted(saved):
    return load_policy(saved, LoRA(4)).eval()


@pytest.fixture
def batch(adapted, studies):
    return StudyCollator(adapted.processor, "Report:")(studies[:2])


@pytest.fixture(autouse=True)
def recorder(tmp_path, monkeypatch):
    folder = tmp_path / "vllm-0.32.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: vllm\nVersion: 0.32.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    vllm, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams = Recorder, dict
    request.LoRARequest = collections.namedtuple("LoRARequest", "lora_name lora_int_id lora_path")
    for name, module in (("vllm", vllm), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Recorder, "engine", None, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def gpu(monkeypatch):
    """What CUDA says; generators of a GPU are not there to be kept."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", Recorder.free)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    return torch.device("cuda", 0)


def started(policy, batch, device, **settings):
    trainer = types.SimpleNamespace(
        strategy=types.SimpleNamespace(root_device=device), precision="bf16-mixed", global_rank=1, local_rank=1,
        world_size=2,
    )  # fmt: skip
    engine = ColocatedEngine(Colocate(**settings), policy, "folder", 2, trainer)
    engine.engine.batch = batch
    return engine


def sampled(engine, batch):
    return engine.sample(batch, {0: 1, 1: 2}, 3, 8, 1.0)


def test_on_a_gpu_the_engine_is_awake_in_rollouts_alone(adapted, batch, gpu):
    engine = started(adapted, batch, gpu)
    assert Recorder.calls == ["start", "sleep 1"]
    assert Recorder.options["enable_sleep_mode"]
    assert Recorder.options["gpu_memory_utilization"] == 0.4
    assert engine.asleep == 30 * GIB  # of 32 GiB it keeps 2
    rollout = sampled(engine, batch)
    assert rollout.completion_ids.tolist() == [TOKENS] * 6
    assert rollout.old_logps.tolist() == [[-0.5] * 3] * 6
    assert Recorder.calls == ["start", "sleep 1", "wake up", "chat", "sleep 1"]
    assert engine.asleep == 30 * GIB


def test_it_sleeps_again_where_sampling_fails(adapted, batch, gpu, monkeypatch):
    engine = started(adapted, batch, gpu)
    monkeypatch.setattr(Recorder, "fails", True)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        sampled(engine, batch)
    assert Recorder.calls[-2:] == ["chat", "sleep 1"]


def test_too_little_memory_to_start_is_found_before_vllm_loads(adapted, batch, gpu, monkeypatch):
    monkeypatch.setattr(Recorder, "others", 50 * GIB)
    monkeypatch.setattr(Recorder, "calls", [])
    with pytest.raises(
        ValueError,
        match=r"Expected 32\.0 GiB of GPU memory to be free for the vLLM engine, but 30\.0 GiB are free: lower "
        r"model\.init_args\.rollout\.colocate\.memory \(0\.4 of 80\.0 GiB\), or end what uses the GPU\.",
    ):
        started(adapted, batch, gpu)
    assert not Recorder.calls
    started(adapted, batch, gpu, memory=0.3)


def test_too_little_memory_to_wake_up_ends_the_run_with_what_is_free(adapted, batch, gpu, monkeypatch):
    engine = started(adapted, batch, gpu)
    monkeypatch.setattr(Recorder, "others", 60 * GIB)  # what trains has grown
    with pytest.raises(RunError, match=r"Expected 30\.0 GiB .*, but 18\.0 GiB are free: lower .*memory \(0\.4\)"):
        sampled(engine, batch)
    assert "wake up" not in Recorder.calls
    assert not engine.engine.awake


def test_training_and_engine_do_not_notice_each_other(adapted, batch):
    """Threads, random generators, and the autocast of a training step."""
    torch.set_num_threads(1)
    engine = started(adapted, batch, torch.device("cpu"))
    assert torch.get_num_threads() == 1
    before = torch.get_rng_state(), random.getstate()
    with torch.autocast("cpu", torch.bfloat16):
        sampled(engine, batch)
        assert torch.is_autocast_enabled("cpu")
    assert Recorder.seen == (THREADS, False, False)
    assert torch.get_num_threads() == 1
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert Recorder.calls == ["start", "chat"]  # there is no sleep mode on a CPU
    assert not Recorder.options["enable_sleep_mode"]


def test_every_process_of_ddp_starts_an_engine_for_its_gpu(adapted, batch, gpu, monkeypatch):
    device = torch.device("cuda", 1)
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    started(adapted, batch, gpu)
    assert "distributed_executor_backend" not in Recorder.options
    assert {name: value for name, value in Recorder.variables.items() if value} == alone
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    started(adapted, batch, device)
    assert Recorder.options["distributed_executor_backend"] == "external_launcher"
    assert Recorder.variables == {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", **alone}
    assert all(os.environ.get(name) is None for name in NAMES)


def test_what_vllm_says_when_it_does_not_start_is_one_line(adapted, batch, monkeypatch):
    def broken(*args, **options):
        raise ValueError("No available memory for the cache blocks.\nTry increasing `gpu_memory_utilization`.")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", broken)
    with pytest.raises(
        ValueError, match=r"vLLM 0\.32\.0 does not start .* cache blocks\. Try .*memory \(0\.4\)"
    ) as caught:
        started(adapted, batch, torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert "VLLM_NO_USAGE_STATS" not in os.environ


def test_the_adapter_of_each_round_has_a_number_of_its_own(adapted, batch, tmp_path):
    engine = started(adapted, batch, torch.device("cpu"))
    engine.synchronize(0, None)
    first = engine.adapter
    engine.synchronize(0, None)
    assert engine.adapter is first
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir(first.lora_path))
    engine.synchronize(1, None)
    assert (engine.adapter.lora_int_id, os.listdir(first.lora_path)) == (2, [])
    assert Recorder.options["max_lora_rank"] == 8  # the smallest for rank 4
