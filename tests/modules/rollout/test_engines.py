"""Which engines fit which run; engines that sample are in tests/servers."""

import logging

import lightning as L
import pytest

from mrg.errors import MissingPackageError
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.colocate import GIB, Colocate, check_memory, check_version
from mrg.modules.rollout.engines import check_engine, check_place, connect_engine, note_engine
from mrg.modules.rollout.vllm_servers import Servers
from mrg.modules.settings import RolloutSettings
from mrg.strategy import FSDP2

SERVERS, COLOCATE = RolloutSettings(servers=Servers(["http://a"])), RolloutSettings(colocate=Colocate())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": 0.0}, "memory to be above 0 and below 1, but got 0.0"),
        ({"memory": 1.0}, "memory to be above 0 and below 1, but got 1.0"),
        ({"memory": float("nan")}, "memory to be above 0 and below 1, but got nan"),
        ({"max_length": 0}, "max_length to be at least 1, but got 0"),
        ({"correction": "clip"}, "one of truncate, mask, none, sequence_mask, but got 'clip'"),
        ({"ratio_limit": 1.0}, "above 1, but got 1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Colocate(**settings)


@pytest.mark.parametrize(
    ("rollout", "settings", "message"),
    [
        (SERVERS, {"lora": None}, "never whole weights: set model.init_args.lora, or rollout.servers to null"),
        (COLOCATE, {"lora": None}, "never whole weights: set model.init_args.lora, or rollout.colocate to null"),
        (SERVERS, {"train_vision": True}, "set model.init_args.train_vision to false, or rollout.servers to null"),
        (COLOCATE, {"load_in_4bit": True}, "set model.init_args.load_in_4bit to false, or rollout.colocate to null"),
        (COLOCATE, {"train_vision": True}, "set model.init_args.train_vision to false, or rollout.colocate to null"),
        (
            COLOCATE,
            {"language_model": "smollm2"},
            "set model.init_args.language_model to '', or",
        ),
        (RolloutSettings(servers=SERVERS.servers, colocate=Colocate()), {}, "are mutually exclusive"),
    ],
)
def test_settings_that_do_not_fit_the_engine(rollout, settings, message):
    given = {"lora": LoRA(4), "load_in_4bit": False, "train_vision": False}
    check_engine(RolloutSettings(), **{**given, **settings})
    check_engine(rollout if rollout.servers is None or rollout.colocate is None else SERVERS, **given)
    with pytest.raises(ValueError, match=message):
        check_engine(rollout, **{**given, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "overlap requires servers, .* the policy itself cannot: set model.init_args.rollout.servers"),
        ({"colocate": Colocate()}, "the engine in this process cannot"),
        (
            {"servers": Servers(["http://a"], correction="none")},
            "only a correction makes unbiased: set",
        ),
    ],
)
def test_what_cannot_sample_ahead(settings, message):
    given = {"lora": LoRA(4), "load_in_4bit": False, "train_vision": False}
    check_engine(RolloutSettings(overlap=1, servers=SERVERS.servers), **given)
    with pytest.raises(ValueError, match=message):
        check_engine(RolloutSettings(overlap=1, **settings), **given)
    with pytest.raises(ValueError, match="overlap to be 0 or 1, but got 2"):
        RolloutSettings(overlap=2)


def test_fsdp_is_refused_before_anything_is_loaded():
    sharded = L.Trainer(accelerator="cpu", strategy=FSDP2(), logger=False, enable_checkpointing=False)
    check_place(SERVERS, sharded)
    with pytest.raises(ValueError, match=r"set trainer.strategy to ddp, or use rollout.servers"):
        check_place(COLOCATE, sharded)


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0", "dev"])
def test_another_version_is_refused(version, tmp_path, monkeypatch):
    """The newest entry of the search path wins, as for every package."""
    (tmp_path / f"vllm-{version}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (tmp_path / f"vllm-{version}.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"Expected vllm>=0\.32,<0\.33 .* but found version {version}\. Install it"):
        check_version()


def test_a_supported_version_is_accepted_with_its_local_part(tmp_path, monkeypatch):
    (tmp_path / "vllm-0.32.1+cpu.dist-info").mkdir()
    (tmp_path / "vllm-0.32.1+cpu.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 0.32.1+cpu\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert check_version() == "0.32.1+cpu"
    check_place(COLOCATE, L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))


def test_without_vllm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(
        MissingPackageError, match=r"is not installed\. Install it \(pip install 'vllm>=0\.32,<0\.33'\)"
    ):
        check_version()


def test_too_little_memory_says_what_is_free_and_what_to_change():
    check_memory(5 * GIB, 5 * GIB, "lower it")
    with pytest.raises(ValueError, match=r"Expected 5\.0 GiB .* but 3\.5 GiB are free: lower it\."):
        check_memory(int(3.5 * GIB), 5 * GIB, "lower it")


def test_without_an_engine_the_policy_samples(policy):
    assert connect_engine(RolloutSettings(), policy, None, "tiny", 2) is None
    assert RolloutSettings().engine is None
    assert SERVERS.engine is SERVERS.servers
    assert COLOCATE.engine is COLOCATE.colocate


class Version:
    version = "vLLM 0.32.0"


@pytest.mark.parametrize(
    ("saved", "engine", "note"),
    [
        ("", Version(), "sampled by the policy, from now on by vLLM 0.32.0."),
        ("vLLM servers", Version(), "sampled by vLLM servers, from now on by vLLM 0.32.0."),
        ("vLLM 0.32.0", Version(), ""),
        (None, Version(), ""),
        ("vLLM 0.32.0", None, ""),
    ],
)
def test_a_change_of_the_engine_is_noted(saved, engine, note, caplog):
    with caplog.at_level(logging.INFO, "mrg"):
        note_engine(saved, engine)
    assert note in caplog.text
    assert bool(caplog.text) == bool(note)
