"""Rollouts of a run by a server; real servers are in tests/servers."""

import torch

from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.modules.rl.reward import Rewards
from mrg.modules.rollout import vllm
from mrg.modules.rollout.vllm_servers import Servers
from tests.modules.rollout.test_ahead import SETTINGS, server, small  # noqa: F401
from tests.modules.test_grpo import FixedData, saved, trainer  # noqa: F401
from tests.nested import nested


def test_resampled_groups_send_images_encoded_once(saved, small, server, tmp_path, monkeypatch):  # noqa: F811
    encoded, part = [], vllm.image_part
    monkeypatch.setattr(vllm, "image_part", lambda image: encoded.append(image.size) or part(image))
    studies, scored = small[:4], []
    dead = {studies[1].id, studies[3].id}

    def reward(texts, target, study_id):
        scored.append(len(texts))
        total = torch.tensor([0.0 if name in dead else float(i) for i, name in enumerate(study_id)])
        nothing = torch.zeros(len(texts), 14, dtype=torch.long)
        return Rewards(total.double(), {}, (nothing, nothing))

    module = GRPOModule(**nested(
        policy=saved, lora=LoRA(4), group_size=3, learning_rate=1e-2, kl_coef=0.0, resample_dead=2,
        servers=Servers([server.url], str(tmp_path / "adapters"), attempts=2), **SETTINGS,
    ))  # fmt: skip
    module.reward = reward
    trainer(1).fit(module, FixedData(studies, batch_size=4))
    assert scored == [12, 6, 6]
    assert len(server.asked) == 4 + 2 + 2
    assert len(encoded) == sum(len(study.views) for study in studies)
