"""A checkpoint holds the arguments of its module, so that `load_from_checkpoint` gives a module that writes reports."""

import dataclasses
from pathlib import Path

import pytest
import torch

from mrg.cli import main
from mrg.datamodules.collate import StudyCollator
from mrg.metrics import parse_completion
from mrg.modules.arguments import plain_arguments
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.modules.rl.reward import WeightedScorer
from mrg.modules.rl.settings import RewardSettings
from mrg.modules.rollout.sampling import sample
from mrg.modules.settings import RolloutSettings
from mrg.modules.sft import SFTModule
from tests.callbacks.runs import fit_arguments
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness, trainer, weights
from tests.nested import nested
from tests.refusals import refused


@pytest.fixture
def saved(policy, tmp_path):
    policy.save(tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.mark.parametrize("kind", [SFTModule, GRPOModule])
def test_a_loaded_module_writes_the_reports_of_the_trained_one(kind, saved, studies, tmp_path):
    options = {"lora": LoRA(4), "learning_rate": 3e-2, "warmup_steps": 0, **SETTINGS}
    if kind is GRPOModule:
        options |= {"group_size": 4, "scorers": [WeightedScorer("mrg.metrics.nlg:bleu", 0.5)], "kl_estimator": "k1"}
    torch.manual_seed(0)
    module = kind(**nested(policy=saved, **options))
    if kind is GRPOModule:
        module.reward = Shortness()
    lightning = trainer(3)
    lightning.fit(module, FixedData(studies, batch_size=4))
    path = tmp_path / "last.ckpt"
    lightning.save_checkpoint(path)
    loaded = kind.load_from_checkpoint(path)
    assert not loaded.training
    assert all(torch.equal(weight, weights(loaded)[name]) for name, weight in weights(module).items())
    assert loaded.lora == LoRA(4)
    assert loaded.optimizer_settings == module.optimizer_settings
    if kind is GRPOModule:
        assert (loaded.rollout_settings, loaded.kl) == (RolloutSettings(4), module.kl)
        assert loaded.reward.weights == {"mccs": 0.75, "ce_f1": 0.0, "format": 0.25, "bleu": 0.5}
    reports = loaded.write_reports(studies[:3])
    prompts = module.policy.embed(StudyCollator(module.policy.processor, "Report:")(studies[:3]))
    texts = sample(module.policy, prompts, 1, 10, temperature=0.0).texts
    assert reports == [parse_completion(text, "absent").report for text in texts]
    other = kind.load_from_checkpoint(path, max_new_tokens=4, lora=LoRA(4, 32))
    assert other.max_new_tokens == 4
    rows = trainer(0).predict(other, FixedData(studies))
    assert [row["id"] for batch in rows for row in batch] == [study.id for study in studies[:3]]


def test_arguments_are_plain_values():
    found = plain_arguments(
        {"reward": RewardSettings(scorers=[WeightedScorer("a:b")]), "names": ("x", Path("y")), "_own": 1}
    )
    scorers = [{"scorer": "a:b", "weight": 1.0, "name": ""}]
    settings = {**dataclasses.asdict(RewardSettings()), "scorers": scorers}
    assert settings["mccs_weight"] == 0.75
    assert found == {"reward": settings, "names": ["x", "y"]}


def test_the_checkpoint_of_a_run_is_loaded_and_does_not_override_the_command_line(tmp_path):
    main(["fit", *fit_arguments(tmp_path)])
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    loaded = SFTModule.load_from_checkpoint(best)
    assert loaded.source == "tiny"  # its tokenizer is that of the run's policy
    given = [f"--ckpt_path={best}", "--name=other", "--model.init_args.optimizer.warmup_steps=7"]
    main(["fit", *fit_arguments(tmp_path, *given, "--trainer.max_steps=6")])
    again = SFTModule.load_from_checkpoint(tmp_path / "other" / "checkpoints" / "best.ckpt")
    assert again.optimizer_settings.warmup_steps == 7 != loaded.optimizer_settings.warmup_steps


def test_checkpoints_that_cannot_be_loaded_alone(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "old.ckpt")
    message = refused(lambda: SFTModule.load_from_checkpoint(tmp_path / "old.ckpt"), ValueError)
    assert message.endswith("does not hold the module's arguments: it was written by an earlier version of mrg.")
    (tmp_path / "sharded.ckpt").mkdir()
    message = refused(lambda: SFTModule.load_from_checkpoint(tmp_path / "sharded.ckpt"), ValueError)
    assert "is a sharded checkpoint" in message
