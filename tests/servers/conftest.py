import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from tests.servers.engines import RANK, Server


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from mrg.datamodules.demo import World, make_study
    from mrg.modules.policy.tiny import Tiny, tiny_policy

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("served")
    reports = [make_study(World(), 0, "train", index, 112).report for index in range(8)]
    policy = tiny_policy(reports, Tiny(64, vision_depth=1, vocab_size=400, init_std=0.02))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    policy.save(folder)
    return folder


@pytest.fixture(scope="module")
def servers(request, saved, tmp_path_factory):
    program = request.config.getoption("vllm") / "bin" / "vllm"
    if not program.is_file():
        pytest.skip(f"no vLLM at {program}: bash tests/servers/build_vllm.sh")
    logs = tmp_path_factory.mktemp("logs")
    started = []
    try:
        # One after the other: two at once each take what memory the other is about to.
        for index in range(2):
            started.append(Server(program, saved, logs / f"{index}.log"))
            started[-1].wait()
        yield started
    finally:
        for server in started:
            server.kill()


@pytest.fixture
def policy(saved):
    """With an adapter that changes what is written."""
    torch.manual_seed(1)
    policy = load_policy(str(saved), LoRA(RANK, 8)).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return policy


@pytest.fixture
def unadapted(saved):
    return load_policy(str(saved)).eval()


@pytest.fixture
def batch(policy, studies):
    return StudyCollator(policy.processor, "Report:")(studies[:4])
