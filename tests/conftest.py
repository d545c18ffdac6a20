import logging
import os
from pathlib import Path

import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.demo import World, make_study
from mrg.log import log
from mrg.modules.policy.tiny import Tiny, tiny_policy
from tests.trees import write_iu_tree

torch.set_num_threads(1)  # two threads only wait for each other where anything else runs


def pytest_addoption(parser):
    default = Path(__file__).parents[1] / ".vllm"
    parser.addoption("--rehearse", action="store_true", help="run the tests for CUDA GPUs on the CPU")
    parser.addoption("--vllm", type=Path, default=default, help="environment of tests/servers/build_vllm.sh")


@pytest.fixture(autouse=True)
def no_seed_left():
    """Lightning keeps a run's seed in the environment, where every later process of several ranks would find it."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def logger_unconfigured():
    """The command line sets the level and the handler of the package's logger; the next test finds neither."""

    def reset():
        log.setLevel(logging.NOTSET)
        log.handlers[:] = [handler for handler in log.handlers if isinstance(handler, logging.NullHandler)]

    reset()  # a fixture of a wider scope may have run a command
    yield
    reset()


@pytest.fixture(scope="session")
def studies():
    return [make_study(World(lateral=0.5), 0, "train", index, 112) for index in range(8)]


@pytest.fixture
def policy(studies):
    torch.manual_seed(0)
    policy = tiny_policy([s.report for s in studies], Tiny(64, vision_depth=1, vocab_size=400, init_std=0.02))
    with torch.no_grad():  # sharper than the initial weights, so that a difference would show
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return policy.eval()


@pytest.fixture
def batch(policy, studies):
    return StudyCollator(policy.processor, "Report:")(studies[:4])


@pytest.fixture
def iu_tree(tmp_path):
    """Folder of a small IU X-Ray in R2Gen's layout, `tmp_path / "data"`, and its annotation."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data", write_iu_tree(tmp_path / "data")
