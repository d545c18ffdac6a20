"""Rollouts that servers sample while the policy trains: which policy samples, checkpoints, failures."""

import json
import threading

import lightning as L
import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.demo import World, make_study
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.ahead import Ahead
from mrg.modules.rollout.vllm import VLLMClient
from mrg.modules.rollout.vllm_servers import ServerError, Servers
from tests.callbacks.resuming import Lengths, Stop, differences, fit, newest, on_ranks
from tests.modules.test_grpo import FixedData, saved, trainer  # noqa: F401
from tests.nested import nested
from tests.servers.fake import FakeVLLM

SETTINGS = {"prompt": "Report:", "think": "absent", "max_new_tokens": 8, "max_pixels": 56 * 56, "warmup_steps": 2}


@pytest.fixture
def small():
    return [make_study(World(), 0, "train", index, 56) for index in range(8)]


@pytest.fixture
def server(saved, small):  # noqa: F811
    started = FakeVLLM(saved, small, 56 * 56)
    yield started
    started.close()


@pytest.fixture
def client(server, saved, tmp_path):  # noqa: F811
    policy = load_policy(saved, LoRA(4), max_pixels=56 * 56)
    client = VLLMClient(Servers([server.url], str(tmp_path / "adapters"), attempts=1), policy)
    client.pool.check()
    return client


def equal(one, other):
    names = ("completion_ids", "completion_mask", "old_logps", "truncated")
    return one.texts == other.texts and all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


OPTIONS = (3, 8, 1.0)


def test_what_is_taken_is_what_would_have_been_sampled(client, small):
    batch = StudyCollator(client.policy.processor, "Report:")(small[:2])
    ahead, seeds = Ahead(client), {0: 5, 1: 6}
    assert ahead.take(3, batch, torch.device("cpu")) is None
    ahead.start(4, batch, seeds, OPTIONS)
    ahead.start(4, batch, {0: 7, 1: 8}, OPTIONS)  # it is waiting already
    client.last_sync = 4
    taken = ahead.take(4, batch, torch.device("cpu"))
    assert equal(taken, client.sample(batch, seeds, *OPTIONS))
    assert ahead.age == 4  # it was asked for before the first adapter
    assert equal(ahead.take(4, batch, torch.device("cpu")), taken)  # a round that failed is repeated
    assert ahead.take(5, batch, torch.device("cpu")) is None
    assert ahead.age == 0
    assert not ahead.waiting


def test_what_waits_is_saved_unless_a_rank_lacks_it(client, small):
    batch = StudyCollator(client.policy.processor, "Report:")(small[:2])
    ahead, again = Ahead(client), Ahead(client)
    for number in (4, 5):
        ahead.start(number, batch, {0: number, 1: 6}, OPTIONS)
    state = ahead.state_dict()
    again.load_state_dict([state, {5: state[5]}], 0)
    assert again.take(4, batch, torch.device("cpu")) is None
    assert equal(again.take(5, batch, torch.device("cpu")), ahead.take(5, batch, torch.device("cpu")))
    other = StudyCollator(client.policy.processor, "Report:")(small[2:4])
    with pytest.raises(ValueError, match="holds completions for other studies than round 5 has"):
        again.take(5, other, torch.device("cpu"))


def test_a_failure_is_raised_where_the_rollout_is_taken_and_not_saved(client, server, small):
    batch = StudyCollator(client.policy.processor, "Report:")(small[:2])
    ahead = Ahead(client)
    ahead.start(1, batch, {0: 5, 1: 6}, OPTIONS)
    assert set(ahead.state_dict()) == {1}
    server.failing = True
    ahead.start(2, batch, {0: 5, 1: 6}, OPTIONS)
    assert set(ahead.state_dict()) == {1}
    with pytest.raises(ServerError, match="No rollout server could write study"):
        ahead.take(2, batch, torch.device("cpu"))


def ages(saved, studies, server, folder, **settings):  # noqa: F811
    """What is logged in four rounds."""
    module = GRPOModule(**nested(
        policy=saved, lora=LoRA(4), group_size=3, learning_rate=1e-2, kl_coef=0.0, overlap=1,
        servers=Servers([server.url], str(folder / "adapters"), attempts=2), **SETTINGS,
    ))  # fmt: skip
    module.reward = Lengths()
    logged = []
    module.log = lambda name, value, **_: logged.append((name, float(value)))
    trainer(4, **settings).fit(module, FixedData(studies, batch_size=2))
    return logged


class Ended(L.Callback):
    """Notes which rounds have made their steps."""

    def __init__(self):
        self.rounds = [threading.Event() for _ in range(4)]

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        self.rounds[batch_idx].set()


def test_the_servers_write_while_the_round_before_trains(saved, small, server, tmp_path):  # noqa: F811
    """They answer the second round only after the first has trained: a trainer that waits for them would not end."""
    ended, held = Ended(), []

    def hold(adapter):
        """The first round and the one asked for with it come from one policy: 2 studies each, with its adapter."""
        number = server.asked.count(adapter)
        round_index = int(adapter.rsplit("-", 1)[1])
        if round_index or number > 2:
            held.append(ended.rounds[round_index].wait(60))

    server.before_answer = hold
    logged = ages(saved, small, server, tmp_path, callbacks=[ended])
    assert held == [True] * 6
    rounds = [adapter.rsplit("-", 1)[1] for adapter in server.asked]
    assert rounds == ["0"] * 4 + ["1"] * 2 + ["2"] * 2  # the last round of an epoch asks for no other one
    assert [value for name, value in logged if name == "train/rollout_age"] == [0, 1, 1, 1]
    assert all(value > 0 for name, value in logged if name == "train/logp_gap")


def test_an_epoch_that_is_cut_short_asks_for_no_round_of_it(saved, small, server, tmp_path):  # noqa: F811
    logged = ages(saved, small, server, tmp_path, limit_train_batches=2)
    assert [adapter.rsplit("-", 1)[1] for adapter in server.asked] == ["0"] * 4 + ["2"] * 4
    assert [value for name, value in logged if name == "train/rollout_age"] == [0, 1, 0, 1]


@pytest.mark.parametrize("how", ["step", "failure"])
def test_a_resumed_run_learns_from_what_was_waiting(saved, server, tmp_path, how):  # noqa: F811
    """Without it the servers would write something else, because their adapter would be another one."""
    servers = Servers([server.url], str(tmp_path / "adapters"), attempts=1)
    settings = {"module": {"servers": servers, "overlap": 1}, "data": {"num_train": 12}, "max_epochs": 1}
    fit(tmp_path / "whole", "grpo", saved, **settings)
    if how == "step":
        with pytest.raises(Stop):
            fit(tmp_path / "broken", "grpo", saved, stop=(4, "step"), **settings)
    else:  # the reward of the fourth round: what it has taken already is saved with the state before it
        with pytest.raises(RuntimeError, match="no reward"):
            fit(tmp_path / "broken", "grpo", saved, fails=[4, 0, "error"], save_every=100, **settings)
    waiting = torch.load(newest(tmp_path / "broken"), weights_only=True)["ahead"]
    assert 3 in waiting[0]
    fit(tmp_path / "broken", "grpo", saved, checkpoint=newest(tmp_path / "broken"), **settings)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


class Equal(Lengths):
    """Pays the same for all completions, so that every group is sampled again."""

    def __call__(self, texts, target, study_id):
        rewards = super().__call__(texts, target, study_id)
        return rewards._replace(total=torch.zeros_like(rewards.total))


def test_groups_that_a_resumed_run_samples_again_are_of_its_policy(saved, server, tmp_path, monkeypatch):  # noqa: F811
    """The first round was sampled ahead, so that no adapter has been loaded since the resume."""
    monkeypatch.setattr("tests.callbacks.resuming.Lengths", Equal)
    servers = Servers([server.url], str(tmp_path / "adapters"), attempts=1)
    module = {"servers": servers, "overlap": 1, "resample_dead": 1}
    settings = {"module": module, "data": {"num_train": 8}, "max_epochs": 1}
    with pytest.raises(Stop):
        fit(tmp_path / "run", "grpo", saved, stop=(3, "step"), **settings)
    server.asked.clear()
    fit(tmp_path / "run", "grpo", saved, checkpoint=newest(tmp_path / "run"), **settings)
    assert server.asked
    assert all("-" in name for name in server.asked), server.asked  # adapters of rounds, not the base


@pytest.mark.slow
def test_two_processes_resume_as_if_they_had_not_stopped(saved, server, tmp_path):  # noqa: F811
    servers = {"urls": [server.url], "adapters": str(tmp_path / "adapters"), "attempts": 1}
    settings = {"kind": "grpo", "policy": saved, "devices": 2, "strategy": "ddp", "max_epochs": 1}
    settings |= {"module": {"servers": servers, "overlap": 1}, "data": {"num_train": 12}}
    code, output = on_ranks(tmp_path / "whole", settings)
    assert not code, output
    code, output = on_ranks(tmp_path / "broken", {**settings, "stop": (4, "step")})
    assert code
    assert "Stop" in output
    code, output = on_ranks(tmp_path / "broken", {**settings, "checkpoint": newest(tmp_path / "broken")})
    assert not code, output
    assert differences(tmp_path / "whole", tmp_path / "broken") == []
    assert json.loads((tmp_path / "whole" / "settings.json").read_text())["devices"] == 2
