"""Settings that would train nothing, or the wrong way, are refused in one line before anything is loaded."""

import functools
import math
import warnings
from pathlib import Path

import pytest

from mrg.commands.ablate.configuration import load_ablation
from mrg.commands.size.command import read_config
from mrg.modules.baselines import ConstantNormal
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import LoRA
from mrg.modules.settings import check_lora, check_optimiser, check_reference, check_trainer
from mrg.modules.sft import SFTModule
from tests.modules.test_grpo import SETTINGS, FixedData, module_on, trainer
from tests.refusals import refused

CONFIGS = Path(__file__).parents[2] / "configs"
OPTIMISER = ("learning_rate", "warmup_steps", "decay_steps", "weight_decay", "max_grad_norm")


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
    assert message in refused(lambda: kind(**settings), ValueError)


def test_a_negative_weight_of_the_reference():
    assert "kl_coef to be at least 0, but got -1.0." in refused(lambda: GRPOModule(kl_coef=-1.0), ValueError)


def test_bounds_are_taken():
    module = SFTModule(warmup_steps=0, decay_steps=1, max_grad_norm=math.inf, weight_decay=0.0)
    assert module._rate(0) == 1.0
    GRPOModule(warmup_steps=4, decay_steps=5, kl_coef=0.0, patience=1)


def test_a_reference_that_would_move():
    """With the adapter off, a trained vision tower is still there; a copy holds the tower too."""
    message = refused(lambda: check_reference("adapter", 0.1, True, LoRA(4)), ValueError)
    assert "whose vision tower is trained too" in message
    assert "lora to null with reference copy" in message
    check_reference("copy", 0.1, True, None)
    check_reference("adapter", 0.0, True, LoRA(4))
    check_reference("adapter", 0.1, False, LoRA(4))


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


def test_clips_without_effect_are_told(policy, studies, tmp_path):
    policy.save(tmp_path)
    quiet = [{}, {"clip_high": 0.3, "num_iterations": 2}, {"dual_clip": 3.0, "num_minibatches": 2}]
    for settings in quiet:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            module_on(str(tmp_path), studies, **settings)
    for settings in ({"clip_low": 0.1}, {"clip_high": 0.3}, {"dual_clip": 3.0}):
        with pytest.warns(UserWarning, match="have no effect: a round makes one step"):
            module_on(str(tmp_path), studies, **settings)


@functools.cache
def init_args(*files):
    return read_config([f"--config={file}" for file in files]).model.init_args


def test_what_is_shipped_is_in_range():
    """Every file, every part beside one, and every arm of the ablation."""
    files = [[path] for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("_ablation")]
    files += [[CONFIGS / "iu.yaml", path] for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "baselines"]
    found = [init_args(*each) for each in files]
    assert len(found) >= 10
    for given in found:
        check_optimiser(*(given[name] for name in OPTIMISER))
        check_lora(given.lora)
        if "kl_coef" in given:
            check_reference(given.reference, given.kl_coef, given.train_vision, given.lora)
    ablation = load_ablation(CONFIGS / "demo_ablation.yaml")
    for arm in ablation.arms.values():
        given = vars(init_args(CONFIGS / arm.config))
        changed = {key.removeprefix("model.init_args."): value for key, value in arm.set.items()}
        check_optimiser(*((given | changed)[name] for name in OPTIMISER))
