import json

import pytest
import torch

from mrg.datamodules.demo import World, make_study
from mrg.modules.policy.tiny import Tiny, tiny_policy
from tests.callbacks.resuming import fit


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    """Folder of a tiny policy."""
    torch.manual_seed(0)
    reports = [make_study(World(), 0, "train", index, 56).report for index in range(10)]
    corpus = [*reports, *["user\nReport:", "assistant\n"] * 10]
    folder = tmp_path_factory.mktemp("policy")
    tiny_policy(corpus, Tiny(32, num_layers=1, vision_depth=1, vocab_size=400), 56 * 56).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def whole(policy_folder, tmp_path_factory):
    """Runs that nothing disturbs, one for each of the settings."""
    done = {}

    def run(kind, **settings):
        key = json.dumps([kind, settings], sort_keys=True)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("whole")
            fit(done[key], kind, policy_folder, **settings)
        return done[key]

    return run
