"""Weights of studies that are drawn more often than others: by hand, in GRPO and in SFT."""

import lightning as L
import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.selection import Selection
from mrg.modules.findings import FindingsModule
from mrg.modules.rl.reward import Rewards
from mrg.modules.sft import SFTModule
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness, module_on, saved, trainer  # noqa: F401
from tests.modules.test_selection import Some
from tests.nested import nested


class Seen(L.Callback):
    def __init__(self):
        self.weights = {}

    def on_train_batch_start(self, run, module, batch, batch_idx):
        self.weights |= dict(zip(batch.study_id, batch.importance.tolist(), strict=True))


def test_weights_are_the_inverse_of_the_factors(saved, studies):  # noqa: F811
    module, _ = module_on(saved, studies)
    module.reward = Shortness()
    data, seen = FixedData(studies, batch_size=4, balance={"Cardiomegaly": 4}, importance=True), Seen()
    trainer(4, callbacks=[seen]).fit(module, data)
    factors = dict(zip((study.id for study in studies), data._weights().tolist(), strict=True))
    assert set(factors.values()) == {1.0, 4.0}
    mean = sum(factors.values()) / len(factors)
    assert len(seen.weights) > 4
    assert seen.weights == {name: pytest.approx(mean / factors[name]) for name in seen.weights}


def test_studies_are_weighted_after_they_are_measured(saved, studies, tmp_path):  # noqa: F811
    """By what they are drawn with in their epoch: their balance, among those that are left."""
    module, _ = module_on(saved, studies, kl_coef=0.0)
    module.reward, seen = Some(), Seen()
    select = Selection(samples=2, every=4)
    data = FixedData(studies, batch_size=4, select=select, balance={"Cardiomegaly": 4}, importance=True)
    trainer(5, default_root_dir=tmp_path, callbacks=[seen]).fit(module, data)
    factors = {s.id: w for s, w in zip(studies, data._weights().tolist(), strict=True) if int(s.id.split("-")[1]) % 2}
    mean = sum(factors.values()) / len(factors)
    assert seen.weights == {name: pytest.approx(mean / factor) for name, factor in factors.items()}
    assert len({round(weight, 5) for weight in seen.weights.values()}) == 2


def test_advantages_are_multiplied(saved, studies):  # noqa: F811
    module, _ = module_on(saved, studies)
    nothing = torch.zeros(8, 14, dtype=torch.long)
    rewards = Rewards(torch.arange(8.0, dtype=torch.float64), {}, (nothing, nothing))
    plain, weighted = module.advantages(rewards), module.advantages(rewards, torch.tensor([0.5, 3.0]))
    assert torch.allclose(weighted, plain * torch.tensor([0.5] * 4 + [3.0] * 4))


@pytest.mark.parametrize("think", ["absent", "required"])
def test_a_study_of_weight_0_is_not_there(saved, studies, think):  # noqa: F811
    module = SFTModule(**nested(policy=saved, **{**SETTINGS, "think": think, "max_new_tokens": 200}))
    module.policy = module.load()
    collate = StudyCollator(module.policy.processor, "Report:")
    both, alone = collate(studies[:2]), collate(studies[:1])
    both.importance = torch.tensor([2.0, 0.0])
    with torch.no_grad():
        (total, count, _), (expected, tokens, _) = module._losses(both), module._losses(alone)
    assert float(count) == 2 * float(tokens)
    assert float(total) == pytest.approx(2 * float(expected), rel=1e-5)


def test_weights_without_an_effect_are_refused(saved, studies):  # noqa: F811
    module, _ = module_on(saved, studies)
    with pytest.raises(ValueError, match="importance has no effect without balance or select: set it to false"):
        trainer(1).fit(module, FixedData(studies, importance=True))
    findings = FindingsModule(**nested(policy=saved, **SETTINGS))
    with pytest.raises(ValueError, match="weights studies in SFT and GRPO, but not in FindingsModule"):
        trainer(1).fit(findings, FixedData(studies, importance=True, balance={"Cardiomegaly": 2}))
