"""The rollout against real vLLM servers: `bash tests/servers/build_vllm.sh && pytest tests/servers`."""

import threading
import time

import lightning as L
import pytest
import torch

from mrg.callbacks.checkpoint import Checkpoints
from mrg.datamodules.collate import StudyCollator
from mrg.log import configure
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.vllm import VLLMClient
from mrg.modules.rollout.vllm_servers import ServerError, Servers
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness, trainer
from tests.nested import nested
from tests.servers.engines import (
    RANK,
    assert_greedy_tokens_follow_the_adapter,
    assert_sampled_groups_come_from_the_policys_distribution,
    local,
    same_tokens,
    seeds,
)

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def writer(servers, policy, tmp_path, **settings):
    urls = [server.url for server in servers]
    written = VLLMClient(Servers(urls, str(tmp_path / "adapters"), timeout=300, **settings), policy, tmp_path.name)
    written.pool.check()
    return written


def test_greedy_tokens_equal_the_local_rollout_before_and_after_an_adapter(servers, policy, unadapted, batch, tmp_path):
    remote = writer(servers, policy, tmp_path)

    def update(index):
        remote.adapter = remote.publish(tmp_path / "adapters", index)

    assert_greedy_tokens_follow_the_adapter(remote, update, policy, unadapted, batch)


def test_the_snippet_of_the_export_page(servers, unadapted, studies, tmp_path, monkeypatch):
    """Next to transformers, in which special tokens are not suppressed either."""
    from PIL import Image

    from tests.commands.export.test_export_page import snippet
    from tests.families import model_inputs

    monkeypatch.chdir(tmp_path)
    Image.fromarray(studies[4].views[0].image).save("frontal.png")
    filled = {"http://localhost:8000": servers[0].url, '"max_tokens": 256': '"max_tokens": 16'}
    block = snippet("vLLM", PROMPT="Report:", **filled, **{'"model": "iu"': '"model": "tiny"'})
    names = {}
    exec(compile(block, "export.md", "exec"), names)
    one_view = StudyCollator(unadapted.processor, "Report:", max_views=1)(studies[4:5])
    model = unadapted.base
    model.generation_config.suppress_tokens = None
    ids = model.generate(**model_inputs(unadapted, one_view), max_new_tokens=16, do_sample=False)
    new = ids[0, one_view.prompt_ids.shape[1] :]
    # vLLM leaves out the beginning of a character that is cut off at the end.
    assert names["completion"] == unadapted.processor.tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")
    assert names["completion"]


def test_sampled_groups_come_from_the_policys_distribution(servers, policy, batch, tmp_path):
    remote = writer(servers, policy, tmp_path)
    remote.adapter = remote.publish(tmp_path / "adapters", 0)
    assert_sampled_groups_come_from_the_policys_distribution(remote, policy, batch)


def test_another_prompt_is_refused(servers, policy, studies, tmp_path):
    template = policy.processor.chat_template
    policy.processor.chat_template = template.replace("<|im_start|>", "<|im_start|>the ")
    assert policy.processor.chat_template != template
    batch = StudyCollator(policy.processor, "Report:")(studies[:1])
    with pytest.raises(ValueError, match="reads another prompt than the policy"):
        writer(servers, policy, tmp_path).sample(batch, {0: 0}, 1, 4, 0.0)


def test_an_adapter_of_too_high_a_rank_is_refused_in_one_line(servers, saved, studies, tmp_path):
    policy = load_policy(str(saved), LoRA(32, 32)).eval()
    remote = writer(servers, policy, tmp_path)
    remote.adapter = remote.publish(tmp_path / "adapters", 0)
    with pytest.raises(ValueError, match="max-lora-rank") as caught:
        remote.sample(StudyCollator(policy.processor, "Report:")(studies[:1]), {0: 0}, 1, 4, 0.0)
    assert "\n" not in str(caught.value)


def fit(servers, saved, studies, folder, steps, batch_size=4, reward=None, **settings):
    urls = [server.url for server in servers]
    torch.manual_seed(0)
    module = GRPOModule(**nested(
        policy=str(saved), lora=LoRA(RANK), group_size=4, learning_rate=1e-2, warmup_steps=1, mask_truncated=False,
        servers=Servers(urls, str(folder / "adapters"), timeout=60, attempts=3), **SETTINGS, **settings,
    ))  # fmt: skip
    module.reward = reward or module.reward
    logged = []
    module.log = lambda name, value, **_: logged.append((name, float(value)))
    run = trainer(steps)
    run.fit(module, FixedData(studies[:8] if batch_size < 4 else studies[:4], batch_size=batch_size))
    return logged


@pytest.mark.parametrize("options", [{}, {"num_minibatches": 2, "num_iterations": 2}])
def test_training_follows_the_servers_and_they_follow_the_policy(servers, saved, studies, tmp_path, options):
    steps = 3 * options.get("num_minibatches", 1) * options.get("num_iterations", 1)
    logged = fit(servers, saved, studies, tmp_path, steps, **options)
    gaps = [value for name, value in logged if name == "train/logp_gap"]
    assert len(gaps) == 3
    assert gaps[0] < 1e-3  # before the first step the server's policy is ours
    assert all(value < (1e-3 if not options else 1) for value in gaps)
    assert {path.name.rsplit("-", 1)[1] for path in (tmp_path / "adapters").iterdir()} == {"1", "2"}


def test_servers_that_sample_ahead_are_one_step_behind(servers, saved, studies, tmp_path):
    logged = fit(servers, saved, studies, tmp_path, 4, batch_size=2, reward=Shortness(), overlap=1)
    gaps = [value for name, value in logged if name == "train/logp_gap"]
    assert [value for name, value in logged if name == "train/rollout_age"] == [0, 1, 1, 1]
    assert gaps[0] < 1e-3  # the policy itself
    assert all(1e-3 < value < 1 for value in gaps[1:])  # the one before a step


def test_a_server_that_dies_in_mid_round_loses_nothing_and_its_return_is_noticed(
    servers, policy, unadapted, batch, tmp_path
):
    remote = writer(servers, policy, tmp_path, attempts=6)
    remote.adapter = remote.publish(tmp_path / "adapters", 0)
    remote.sample(batch, seeds(batch), 2, 16, 0.7)
    written = {}
    thread = threading.Thread(
        target=lambda: written.update(rollout=remote.sample(batch, seeds(batch), 12, 256, 0.7)), daemon=True
    )
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    servers[1].kill()
    thread.join(120)
    rollout = written["rollout"]
    assert rollout.completion_ids.shape[0] == len(batch) * 12
    assert remote.pool.down == {servers[1].url}
    assert same_tokens(remote.sample(batch, seeds(batch), 1, 16, 0.0), local(policy, batch))

    servers[1].start()
    servers[1].wait()
    assert same_tokens(remote.sample(batch, seeds(batch), 1, 16, 0.0), local(policy, batch))
    assert not remote.pool.down
    plain = writer(servers[1:], policy, tmp_path)
    assert same_tokens(plain.sample(batch, seeds(batch), 1, 16, 0.0), local(unadapted, batch))


class KillAt(L.Callback):
    """Kills all servers before a round."""

    def __init__(self, servers, number):
        self.servers, self.number = servers, number

    def on_train_batch_start(self, trainer, *args):
        if trainer.fit_loop.total_batch_idx == self.number:
            for server in self.servers:
                server.kill()


def test_all_dead_in_mid_run_keeps_the_rounds_before_and_the_run_goes_on(servers, saved, studies, tmp_path, capsys):
    configure()
    urls = [server.url for server in servers]

    def fit(checkpoint=None, *callbacks):
        module = GRPOModule(**nested(
            policy=str(saved), lora=LoRA(RANK), group_size=4, learning_rate=1e-2, warmup_steps=1, mask_truncated=False,
            servers=Servers(urls, str(tmp_path / "adapters"), timeout=60, attempts=2), **SETTINGS,
        ))  # fmt: skip
        run = L.Trainer(
            max_steps=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, callbacks=[Checkpoints(tmp_path, save_every=100), *callbacks],
        )  # fmt: skip
        run.fit(module, FixedData(studies[:4], batch_size=4), ckpt_path=checkpoint)
        return run

    with pytest.raises(ServerError, match=r"No rollout server could write study .* start http.* again"):
        fit(None, KillAt(servers, 2))
    path = tmp_path / "checkpoints" / "round-00000002.ckpt"
    assert f"The last checkpoint is {path}. Resume with: " in capsys.readouterr().err
    for server in servers:
        server.start()
        server.wait()
    assert fit(str(path)).global_step == 4
    assert f"Resuming after round 2 from {path}." in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "round-00000004.ckpt").is_file()


def test_all_dead_is_one_clear_line(servers, saved, studies, policy, batch, tmp_path):
    remote = writer(servers, policy, tmp_path, attempts=2)
    for server in servers:
        server.kill()
    with pytest.raises(ServerError, match=r"No rollout server could write study .* start http.* again") as caught:
        remote.sample(batch, seeds(batch), 2, 8, 0.7)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="No rollout server answers at http"):
        fit(servers, saved, studies, tmp_path, 1)
