"""Settings that would train nothing, or the wrong way, are refused in one line before anything is loaded."""

import functools
import math
from pathlib import Path

import pytest
import yaml

from mrg.commands.ablate.configuration import load_ablation
from mrg.commands.size.command import read_config
from mrg.modules.baselines import ConstantNormal
from mrg.modules.grpo import GRPOModule
from mrg.modules.optimizer import OptimizerSettings
from mrg.modules.policy.lora import LoRA
from mrg.modules.settings import OLD_KEYS, KLSettings, check_lora, check_no_moved_keys, check_trainer
from mrg.modules.sft import SFTModule
from tests.modules.test_grpo import SETTINGS, FixedData, module_on, trainer
from tests.nested import nested
from tests.refusals import refused

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate to be above 0, but got 0.0."),
        ({"learning_rate": -1e-4}, "learning_rate to be above 0, but got -0.0001."),
        ({"learning_rate": math.nan}, "learning_rate to be above 0, but got nan."),
        ({"learning_rate": math.inf}, "learning_rate to be above 0, but got inf."),
        ({"max_grad_norm": 0.0}, "max_grad_norm to be above 0, but got 0.0."),
        ({"max_grad_norm": -1.0}, "max_grad_norm to be above 0, but got -1.0."),
        ({"weight_decay": -0.1}, "weight_decay to be at least 0, but got -0.1."),
        ({"warmup_steps": -5}, "warmup_steps to be at least 0, but got -5."),
        ({"decay_steps": -10}, "decay_steps to be at least 0, but got -10."),
        ({"warmup_steps": 10, "decay_steps": 5}, "decay_steps to be 0 or above warmup_steps (10), but got 5:"),
        ({"warmup_steps": 5, "decay_steps": 5}, "decay_steps to be 0 or above warmup_steps (5), but got 5:"),
        ({"patience": 0}, "patience to be at least 1, but got 0."),
        ({"policy": "x", "lora": LoRA(rank=0)}, "lora.rank to be at least 1, but got 0."),
        ({"policy": "x", "lora": LoRA(alpha=0)}, "lora.alpha to be at least 1, but got 0."),
        ({"policy": "x", "lora": LoRA(dropout=1.0)}, "lora.dropout to be at least 0 and below 1, but got 1.0."),
    ],
)
@pytest.mark.parametrize("kind", [SFTModule, GRPOModule])
def test_out_of_range(kind, settings, message):
    assert message in refused(lambda: kind(**nested(**settings)), ValueError)


def test_a_negative_weight_of_the_reference():
    message = refused(lambda: KLSettings(-1.0), ValueError)
    assert message == "Expected model.init_args.kl.coef to be at least 0, but got -1.0."


def test_bounds_are_taken():
    module = SFTModule(**nested(warmup_steps=0, decay_steps=1, max_grad_norm=math.inf, weight_decay=0.0))
    assert module.optimizer_settings.scale(0) == 1.0
    GRPOModule(**nested(warmup_steps=4, decay_steps=5, kl_coef=0.0, patience=1))


def test_a_reference_that_would_move():
    """With the adapter off, a trained vision tower is still there; a copy holds the tower too."""
    message = refused(lambda: KLSettings(0.1).check_fixed(True, LoRA(4)), ValueError)
    assert "whose vision tower is trained too" in message
    assert "lora to null with kl.reference copy" in message
    KLSettings(0.1, reference="copy").check_fixed(True, None)
    KLSettings(0.0).check_fixed(True, LoRA(4))
    KLSettings(0.1).check_fixed(False, LoRA(4))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "transformer-engine"])
def test_precisions_that_fail(precision):
    class Trainer:
        gradient_clip_val = None

    Trainer.precision = precision
    expected = f"Expected trainer.precision to be 'bf16-mixed' or '32-true', but got '{precision}'."
    assert refused(lambda: check_trainer(Trainer, "test"), ValueError) == expected


@pytest.mark.parametrize("kind", [SFTModule, GRPOModule])
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_run_is_refused_before_anything_is_loaded(studies, kind, precision):
    lightning = trainer(1, precision=precision)
    module = kind(policy="/no/where", lora=LoRA(4), **SETTINGS)
    message = refused(lambda: lightning.fit(module, FixedData(studies)), ValueError)
    assert message.endswith(f"but got '{precision}'.")
    baseline = refused(lambda: lightning.test(ConstantNormal(), FixedData(studies), verbose=False), ValueError)
    assert baseline == message


@pytest.mark.parametrize("precision", ["32-true", "32", 32, "bf16-mixed", "bf16", None])
def test_precisions_by_all_their_names(precision):
    check_trainer(trainer(1, precision=precision), "fit")


def test_lightnings_clipping_is_refused_in_supervision_too(studies):
    lightning = trainer(1, gradient_clip_val=0.5)
    module = SFTModule(policy="/no/where", lora=LoRA(4), **SETTINGS)
    message = refused(lambda: lightning.fit(module, FixedData(studies)), ValueError)
    assert "set that, and leave trainer.gradient_clip_val (0.5) out." in message
    check_trainer(lightning, "test")  # of no meaning there


def test_clips_without_effect_are_told(policy, studies, tmp_path, caplog):
    policy.save(tmp_path)
    quiet = [{}, {"clip_high": 0.3, "num_iterations": 2}, {"dual_clip": 3.0, "num_minibatches": 2}]
    for settings in quiet:
        module_on(str(tmp_path), studies, **settings)
        assert not [record for record in caplog.records if record.name == "mrg"]
    for settings in ({"clip_low": 0.1}, {"clip_high": 0.3}, {"dual_clip": 3.0}):
        caplog.clear()
        module_on(str(tmp_path), studies, **settings)
        assert "have no effect: a round makes one step" in caplog.text


@functools.cache
def init_args(*files):
    return read_config([f"--config={file}" for file in files]).model.init_args


def test_what_is_shipped_is_in_range():
    """Every file, every part beside one, and every arm of the ablation."""
    files = [[path] for path in CONFIGS.glob("*.yaml") if "\narms:" not in path.read_text()]
    files += [[CONFIGS / "iu.yaml", path] for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "baselines"]
    found = [init_args(*each) for each in files]
    assert len(found) >= 10
    for given in found:
        OptimizerSettings(**vars(given.optimizer))
        check_lora(given.lora)
        if "kl" in given:
            KLSettings(**vars(given.kl)).check_fixed(given.train_vision, given.lora)
    ablation = load_ablation(CONFIGS / "demo_ablation.yaml")
    for arm in ablation.arms.values():
        given = vars(init_args(CONFIGS / arm.config).optimizer)
        prefix = "model.init_args.optimizer."
        changed = {key.removeprefix(prefix): value for key, value in arm.set.items() if key.startswith(prefix)}
        assert changed
        OptimizerSettings(**(given | changed))


def test_a_key_that_has_moved_is_answered_with_the_new_one(tmp_path, capsys):
    """On the command line, in a configuration, and in the config.yaml of a run that is resumed."""
    iu = f"--config={CONFIGS / 'iu.yaml'}"
    for key in ("model.init_args.kl_coef", "model.kl_coef"):
        with pytest.raises(SystemExit):
            read_config([iu, f"--{key}=0.1"])
        assert capsys.readouterr().err.rstrip().endswith("it is now model.init_args.kl.coef")
    old = {"model": {"class_path": "mrg.modules.sft.SFTModule", "init_args": {"learning_rate": 0.1}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(SystemExit):
        read_config([f"--config={tmp_path / 'config.yaml'}"])
    assert capsys.readouterr().err.rstrip().endswith("it is now model.init_args.optimizer.learning_rate")
    message = refused(lambda: check_no_moved_keys(old, tmp_path / "config.yaml"), ValueError)
    assert "model.init_args.learning_rate; it is now model.init_args.optimizer.learning_rate: rename it" in message
    check_no_moved_keys({"model": {"init_args": {"optimizer": {"learning_rate": 0.1}}}}, tmp_path)


def test_every_moved_key_has_a_place():
    taken = init_args(CONFIGS / "iu.yaml")
    for old, new in OLD_KEYS.items():
        group, name = new.split(".")
        assert name in taken[group]
        assert old not in taken
