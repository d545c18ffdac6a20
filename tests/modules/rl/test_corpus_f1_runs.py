"""The corpus-F1 reward in training: checkpoints, several processes, validation, and what is logged."""

import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from mrg.modules.rl.corpus_f1 import CorpusF1, CorpusF1Reward
from mrg.modules.rl.entropy import EntropySettings
from tests.callbacks.resuming import Stop, differences, fit, newest
from tests.modules.rl.corpus_on_ranks import VARIANTS, corpus_module
from tests.modules.test_grpo import FixedData

ROOT = Path(__file__).parents[3]


@pytest.fixture
def saved(policy, tmp_path):
    policy.save(tmp_path / "policy")
    return str(tmp_path / "policy")


def fitted(saved, studies, steps, **settings):
    L.seed_everything(0, verbose=False)
    module = corpus_module(saved, **settings)
    logged = []
    record = module.log
    module.log = lambda name, value, **options: (logged.append((name, value)), record(name, value, **options))
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, val_check_interval=2, check_val_every_n_epoch=None, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, FixedData(studies[:4], batch_size=2))
    return module, logged


@pytest.mark.parametrize("source", ["rounds", "validation"])
def test_a_resumed_run_is_the_run_that_was_not_broken(saved, tmp_path, source):
    settings = {"module": {"corpus_f1": CorpusF1(source=source, decay=0.5)}}
    whole = fit(tmp_path / "whole", "corpus", saved, **settings)
    with pytest.raises(Stop):
        fit(tmp_path / "broken", "corpus", saved, stop=(4, "step"), **settings)
    before = torch.load(newest(tmp_path / "broken"), weights_only=True)["corpus_f1"]
    resumed = fit(tmp_path / "broken", "corpus", saved, checkpoint=newest(tmp_path / "broken"), **settings)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []
    assert set(before) == {"corpus_f1", "denial_f1"}
    for name, scorer in whole.corpus.items():
        assert torch.equal(scorer.counts, resumed.corpus[name].counts)
        assert not torch.equal(before[name]["counts"], CorpusF1Reward(CorpusF1(), name == "denial_f1").counts)


def test_a_resumed_run_has_the_weight_of_the_entropy_and_the_rewards_that_it_had(saved, tmp_path):
    entropy = EntropySettings(coef=0.5, target=100.0, delta=0.02)
    settings = {
        "module": {"entropy": entropy, "rare_mccs_weight": 1.0, "corpus_f1_weight": 0.0, "denial_f1_weight": 0.0}
    }
    whole = fit(tmp_path / "whole", "corpus", saved, **settings)
    with pytest.raises(Stop):
        fit(tmp_path / "broken", "corpus", saved, stop=(4, "step"), **settings)
    before = torch.load(newest(tmp_path / "broken"), weights_only=True)
    resumed = fit(tmp_path / "broken", "corpus", saved, checkpoint=newest(tmp_path / "broken"), **settings)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []
    assert 0.5 < before["entropy_bonus"]["coef"] < whole.entropy_bonus.coef == resumed.entropy_bonus.coef
    assert len(before["watch"]["history"]) == 1  # the last ones are kept, which `whole` has later
    assert resumed.watch.state_dict() == whole.watch.state_dict()
    weights = [module.normal_bias["rare_mccs"].learned for module in (whole, resumed)]
    assert torch.equal(*weights)


def test_f1_and_advantages_are_logged(saved, studies):
    module, logged = fitted(saved, studies, 2)
    assert module.advantage_scale == "batch"
    values = dict(logged)
    assert values["train/corpus_f1"] != CorpusF1().start  # of the second round
    assert logged[[name for name, _ in logged].index("train/corpus_f1")][1] == pytest.approx(CorpusF1().start)
    assert {"reward/corpus_f1", "reward/denial_f1", "train/denial_f1", "advantage/wrong"} <= set(values)


def test_f1_of_the_last_validation(saved, studies):
    settings = {"corpus_f1": CorpusF1(source="validation", start=0.4)}
    module, _ = fitted(saved, studies, 1, **settings)
    assert module.corpus["corpus_f1"].f1.tolist() == pytest.approx([0.4] * 13)  # not validated yet
    module, _ = fitted(saved, studies, 2, **settings)
    score = float(module.trainer.callback_metrics["val/ce_f1"])
    assert module.corpus["corpus_f1"].f1.tolist() == pytest.approx([score] * 13)


@pytest.mark.slow
def test_two_processes_reward_as_one(saved, tmp_path):
    found = []
    for devices in (1, 2):
        output = tmp_path / f"{devices}.pt"
        command = [sys.executable, "-m", "tests.modules.rl.corpus_on_ranks", saved, str(output), str(devices)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert not done.returncode, done.stderr
        found.append(torch.load(output))
    assert set(found[0]) == set(VARIANTS)
    for variant, one in found[0].items():
        check_equal(one, found[1][variant])
    assert {"share/mccs", "dead/ce_f1", "correlation/format"} <= {name for name, _ in found[0]["decoupled"]["logged"]}


def check_equal(one, two):
    """The run on two processes logs and learns what the run on one does."""
    for name, counts in one["counts"].items():
        assert torch.allclose(counts, two["counts"][name], atol=1e-12)
    assert [name for name, _ in two["logged"]] == [name for name, _ in one["logged"]]
    for (name, value), (_, expected) in zip(two["logged"], one["logged"], strict=True):
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-5), name
    different = sum(int((~torch.isclose(w, two["weights"][n], atol=1e-4)).sum()) for n, w in one["weights"].items())
    assert different <= 1e-3 * sum(w.numel() for w in one["weights"].values())
