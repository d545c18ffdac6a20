"""The findings module: thresholds and AUC by hand, a tower that learns, and the policy folder that it leaves."""

import lightning as L
import pytest
import torch

from mrg.datamodules.demo import World, make_study
from mrg.metrics import RulesLabeler
from mrg.modules.findings import NOTHING, FindingsModule, auc, best_threshold
from mrg.modules.policy.load import LoRA, load_policy
from mrg.modules.policy.tiny import Tiny
from tests.callbacks.resuming import fit, newest
from tests.modules.test_grpo import FixedData
from tests.nested import nested

SHAPE = Tiny(32, 1, vocab_size=400, cnn=[8, 8, 16, 16])
SETTINGS = {"prompt": "Report:", "max_pixels": 64 * 64, "tiny": SHAPE, "warmup_steps": 2}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def drawn():
    return [make_study(World(), 0, "train", index, 112) for index in range(48)]


class Data(FixedData):
    def read(self):
        return {"train": self.given[:32], "val": self.given[32:], "test": self.given[32:]}


class Seen(FixedData):
    """Validates on what it trains on."""

    def read(self):
        return {"train": self.given, "val": self.given, "test": self.given}


def trained(studies, epochs, kind=Data, **settings):
    L.seed_everything(0, verbose=False)
    module = FindingsModule(**nested(**{**SETTINGS, "learning_rate": 3e-3, **settings}))
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=0, **QUIET)
    trainer.fit(module, kind(studies, batch_size=8))
    return module, trainer


def test_the_best_threshold_by_brute_force():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        probabilities = (torch.rand(30, generator=generator) * 10).round() / 10  # with equal ones
        found = torch.rand(30, generator=generator) < 0.3
        threshold, f1 = best_threshold(probabilities, found)
        scores = [2 * float((s & found).sum()) / float(s.sum() + found.sum()) for s in
                  (probabilities >= t for t in probabilities.tolist())]  # fmt: skip
        assert f1 == pytest.approx(max(scores))
        stated = probabilities >= threshold
        assert 2 * float((stated & found).sum()) / float(stated.sum() + found.sum()) == pytest.approx(f1)


def test_a_condition_without_cases_is_never_stated():
    threshold, f1 = best_threshold(torch.tensor([0.9, 0.1]), torch.tensor([False, False]))
    assert (threshold, f1) == (1.0, 0.0)


def test_auc_by_pairs():
    generator = torch.Generator().manual_seed(1)
    scores, found = (torch.rand(40, generator=generator) * 8).round(), torch.rand(40, generator=generator) < 0.4
    pairs = scores[found][:, None] - scores[~found][None]
    assert auc(scores, found) == pytest.approx(float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2))
    assert auc(scores, torch.zeros(40, dtype=torch.bool)) != auc(scores, torch.zeros(40, dtype=torch.bool))  # nan


def test_the_tower_learns_and_the_language_model_does_not(drawn):
    start, _ = trained(drawn, 0)
    module, trainer = trained(drawn, 20, Seen)
    before, after = start.policy.state_dict(), module.policy.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("vision_tower" in name or "multi_modal_projector" in name for name in moved)
    assert any("running_mean" in name for name in moved)
    scores = trainer.callback_metrics
    assert float(scores["val/auc"]) > 0.8
    assert 0 < float(scores["val/ce_f1"]) <= 1
    assert 0 < float(scores["val/threshold"]) < 1
    assert torch.equal(module.thresholds, module.thresholds[:1].expand(13))
    assert any(name.startswith("auc/") for name in scores)


def test_reports_name_what_is_above_the_threshold(drawn):
    module, trainer = trained(drawn, 1, thresholds="each")
    module.thresholds.fill_(1.1)
    trainer.test(module, Data(drawn, batch_size=8), verbose=False)
    assert {row["prediction"] for row in module.predictions} == {NOTHING}
    module.thresholds[:2] = 0.0
    trainer.test(module, Data(drawn, batch_size=8), verbose=False)
    assert {row["prediction"] for row in module.predictions} == {"Enlarged Cardiomediastinum. Cardiomegaly."}
    assert all(row["format"] for row in module.predictions)
    labels = RulesLabeler()([module.predictions[0]["prediction"]])[0].tolist()
    assert labels[:3] == [1, 1, 0]


def test_the_policy_folder_has_the_tower_and_its_statistics(drawn, tmp_path):
    options = {"max_epochs": 1, "data": {"num_train": 8, "image_size": 112}, "monitor": "val/auc"}
    module = fit(tmp_path, "findings", "tiny", module={**SETTINGS, "lora": None}, **options)
    policy, own = load_policy(str(tmp_path / "policy")).state_dict(), module.policy.state_dict()
    assert set(policy) == set(own)
    assert all(torch.allclose(policy[name].float(), own[name].float()) for name in own)
    checkpoint = torch.load(newest(tmp_path), weights_only=True)
    assert torch.equal(checkpoint["thresholds"], module.thresholds)
    saved = checkpoint["state_dict"]
    assert any("running_var" in name for name in saved)
    assert not any("language_model" in name for name in saved)


def test_a_frozen_tower_keeps_its_statistics(drawn, tmp_path):
    module, _ = trained(drawn, 1)
    module.policy.save(tmp_path / "policy")
    for options in ({"lora": LoRA(2)}, {"train_vision": True}):
        policy = load_policy(str(tmp_path / "policy"), **options).train()
        norms = [m for m in policy.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms
        assert not any(m.training for m in norms)
        assert policy.base.model.language_model.training


def test_frozen_layers_stay_as_they_are_with_their_statistics(drawn):
    names = ["vision_tower.embedder.", "vision_tower.encoder.stages.0."]
    start, _ = trained(drawn, 0, frozen=names)
    module, _ = trained(drawn, 1, frozen=names)
    before, after = start.policy.base.model.state_dict(), module.policy.base.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(tuple(names)) for name in moved)
    for part in ("running_mean", "convolution.weight"):
        assert any(name.startswith("vision_tower.encoder.stages.1.") and name.endswith(part) for name in moved)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["encoder.blocks.0."], "such as 'vision_tower.embedder.*', but no name begins with 'encoder.blocks.0.'"),
        (["vision_tower.", "multi_modal_projector."], "freezes the whole vision tower"),
    ],
)
def test_refused_frozen_layers(drawn, names, message):
    with pytest.raises(ValueError, match=message):
        trained(drawn, 0, frozen=names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": LoRA(2), "policy": "x"}, "model.init_args.lora to null"),
        ({"thresholds": "all"}, "model.init_args.thresholds to be 'one' or 'each', but got 'all'"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        FindingsModule(**nested(**{**SETTINGS, **settings}))


def test_data_without_findings(drawn):
    class Silent(Data):
        def train_reports(self):
            return ["The lungs are clear."] * 3

    with pytest.raises(ValueError, match="No training report states a finding"):
        L.Trainer(max_epochs=1, accelerator="cpu", **QUIET).fit(FindingsModule(**nested(**SETTINGS)), Silent(drawn))
