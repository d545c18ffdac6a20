"""Weights of studies that are drawn more often than others: by hand, in GRPO and in SFT."""

import lightning as L
import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.selection import Selection
from mrg.metrics.conditions import CONDITIONS, POSITIVE
from mrg.modules.findings import FindingsModule
from mrg.modules.rl.corpus_f1 import CorpusF1
from mrg.modules.rl.reward import Rewards
from mrg.modules.sft import SFTModule
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness, module_on, saved, trainer  # noqa: F401
from tests.modules.test_selection import Some
from tests.nested import nested

EDEMA = CONDITIONS.index("Edema")


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


def test_the_corpus_f1_of_a_balanced_round_is_that_of_equal_drawing(saved, studies):  # noqa: F811
    """One study of each kind; the first is drawn three times as often, so that its weight is a third of the other's."""
    module, _ = module_on(saved, studies, corpus_f1_weight=1.0, corpus_f1=CorpusF1(decay=0.0))
    module.group_size, scorer = 1, module.corpus["corpus_f1"]
    preds, target = torch.zeros(2, 14, dtype=torch.long), torch.zeros(2, 14, dtype=torch.long)
    preds[0, EDEMA] = target[:, EDEMA] = POSITIVE  # found in the first study, missed in the second
    drawn = [0, 0, 0, 1]
    rewards = Rewards(torch.zeros(4, dtype=torch.float64), {}, (preds[drawn], target[drawn]))
    module.update_corpus(rewards)
    assert float(scorer.f1[0]) == pytest.approx(6 / 7)
    module.update_corpus(rewards, torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0]))
    assert float(scorer.f1[0]) == pytest.approx(2 / 3)
    scorer.update(preds, target)
    assert float(scorer.f1[0]) == pytest.approx(2 / 3)
    module.update_corpus(rewards, torch.zeros(4))  # nothing that is drawn
    assert float(scorer.f1[0]) == pytest.approx(2 / 3)


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
