"""What a run with rollout servers leaves on disk; completions come from the policy itself, real servers are in
tests/servers.
"""

import pytest
import torch

from mrg.modules.grpo import GRPOModule
from mrg.modules.load import LoRA
from mrg.modules.policy import Policy
from mrg.modules.rollout import sample
from mrg.modules.server_rollout import ServerRollout
from mrg.modules.servers import Servers
from tests.modules.test_grpo import SETTINGS, FixedData, trainer
from tests.modules.test_servers import MODELS, ROUTES, Failing


@pytest.fixture
def server():
    started = Failing({"/v1/models": [(200, MODELS)], "/openapi.json": [(200, ROUTES)]})
    yield started
    started.close()


@pytest.fixture
def fit(server, policy, studies, tmp_path, monkeypatch):
    """Train so many rounds; returns what was in the folder of adapters in each."""
    policy.save(tmp_path / "policy")

    def run(folder, steps, fails=None):
        seen = []

        def write(self, batch, seeds, group_size, max_new_tokens, temperature):
            assert (self.adapter[1] / "adapter_config.json").is_file()
            seen.append(sorted(path.name.rsplit("-", 1)[-1] for path in folder.iterdir()))
            if len(seen) == fails:
                raise KeyboardInterrupt
            with torch.no_grad():
                return sample(self.policy, self.policy.embed(batch), group_size, max_new_tokens, temperature)

        monkeypatch.setattr(ServerRollout, "write", write)
        module = GRPOModule(
            policy=str(tmp_path / "policy"), lora=LoRA(4), group_size=2, mask_truncated=False,
            servers=Servers([server.url], str(folder)), **SETTINGS,
        )  # fmt: skip
        try:
            trainer(steps).fit(module, FixedData(studies[:2], batch_size=2))
        except SystemExit:
            seen.append("interrupted")
        return seen

    return run


def test_two_adapters_are_kept_while_a_run_goes_on_and_none_after_it(fit, tmp_path):
    folder = tmp_path / "new" / "adapters"
    assert fit(folder, 4) == [["0"], ["0", "1"], ["1", "2"], ["2", "3"]]
    assert not folder.exists()


def test_a_run_that_is_broken_off_removes_its_adapters_too(fit, tmp_path):
    assert fit(tmp_path / "adapters", 4, fails=2) == [["0"], ["0", "1"], "interrupted"]
    assert not (tmp_path / "adapters").exists()


def test_what_others_put_there_stays(fit, tmp_path):
    folder = tmp_path / "adapters"
    (folder / "mine-7").mkdir(parents=True)
    (folder / "mine-7" / "adapter.txt").write_text("mine")
    fit(folder, 1)
    assert [path.name for path in folder.iterdir()] == ["mine-7"]
    assert (folder / "mine-7" / "adapter.txt").read_text() == "mine"
    (folder / "mine-7" / "adapter.txt").unlink()
    (folder / "mine-7").rmdir()
    fit(folder, 1)
    assert list(folder.iterdir()) == []  # the folder was there before the run


def test_an_adapter_that_cannot_be_written_leaves_no_half_of_it(fit, tmp_path, monkeypatch):
    def fails(self, folder):
        (folder / "half").write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(Policy, "save_adapter", fails)
    with pytest.raises(OSError, match="no space left"):
        fit(tmp_path / "adapters", 1)
    assert not (tmp_path / "adapters").exists()
