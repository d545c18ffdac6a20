"""What a GPU would run, on a device that refuses the CPU's tensors: see `tests/second_device.py`."""

import lightning as L
import pytest
import torch
from torch.utils._pytree import tree_leaves

import tests.second_device
from mrg.datamodules.collate import StudyCollator
from mrg.metrics import CEF1, MCCS, CheXbertLabeler, RulesLabeler
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.static_cache import StaticDecoder
from mrg.modules.sft import SFTModule
from tests.families import QWEN, family_policy, unequal_studies
from tests.family_checkpoints import BUILDERS
from tests.metrics.labelers.chexbert_lookalike import ODD, random_text, write_lookalike
from tests.modules.rollout.test_kv_cache import ending_policy
from tests.modules.rollout.test_static_cache import prompts_for, write
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness
from tests.nested import nested
from tests.second_device import MOVES, SECOND, DeviceError, second_device, second_strategy

FAMILIES = [*QWEN, *BUILDERS]
LORA = {"lora": LoRA(4), "learning_rate": 1e-2, "warmup_steps": 1}


class Gradients(L.Callback):
    """Starts from the same weights. Keeps the gradients of every round, where they were, and where the weights were."""

    def __init__(self):
        self.rounds, self.devices = [], set()

    def on_fit_start(self, trainer, module):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # an adapter that does something, the same wherever it is
            for parameter in (p for p in module.parameters() if p.requires_grad):
                parameter.copy_((0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.device))

    def on_train_batch_end(self, trainer, module, *args):
        found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        self.devices |= {x.device for x in (*found.values(), *module.parameters())}
        self.rounds.append({name: grad.double().cpu() for name, grad in found.items()})


def fitted(module, strategy):
    """Gradients of two rounds, and the scores after them."""
    gradients = Gradients()
    trainer = L.Trainer(
        strategy=strategy,
        accelerator="cpu" if strategy == "auto" else "auto",
        max_epochs=2,
        callbacks=[gradients],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if isinstance(module, GRPOModule):
        module.reward = Shortness()
    data = FixedData(unequal_studies(), batch_size=3)
    trainer.fit(module, data)
    return gradients, trainer.test(module, data, verbose=False)[0]


def check_equal(make, monkeypatch):
    """Training there is training here."""
    torch.manual_seed(0)
    expected, expected_scores = fitted(make(), "auto")
    torch.manual_seed(0)
    with second_device(monkeypatch):
        found, scores = fitted(make(), second_strategy())
    assert found.devices == {SECOND}
    assert len(found.rounds) == len(expected.rounds) == 2
    # Adam divides a gradient by its size: one that is nothing but rounding moves its weight by the whole rate.
    for mine, other, tolerance in zip(found.rounds, expected.rounds, (1e-3, 1e-2), strict=True):
        assert mine.keys() == other.keys()
        whole, rest = (torch.cat([x[name].flatten() for name in other]) for x in (other, mine))
        assert whole.norm() > 1e-3
        assert (whole - rest).norm() <= tolerance * whole.norm()
    assert scores == pytest.approx(expected_scores, abs=1e-4)


QUICK = ("qwen2_5_vl", "gemma3", "fast_vlm")  # one of each kind of vision tower


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_grpo_trains_there_as_on_the_cpu(checkpoints, family, monkeypatch):
    settings = {**SETTINGS, "max_pixels": SETTINGS["max_pixels"] if family in QWEN else 0}
    path = checkpoints(family)
    check_equal(
        lambda: GRPOModule(**nested(policy=path, group_size=4, resample_dead=1, **LORA, **settings)), monkeypatch
    )


OPTIONS = {
    "steps": {"num_minibatches": 3, "num_iterations": 2, "loss_type": "dapo", "advantage_scale": "batch"},
    "sequence ratios": {"num_iterations": 2, "loss_type": "gspo", "dual_clip": 3.0},
    "all weights": {"lora": None, "train_vision": True, "kl_coef": 0.0, "gradient_checkpointing": True},
    "copy": {"lora": None, "reference": "copy", "kl_estimator": "k1", "kl_ratio_correction": True},
    "rows": {"shared_prefix": "off", "micro_batch_tokens": 60},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_work_there(checkpoints, options, monkeypatch):
    settings = {"group_size": 4, **LORA, **SETTINGS, **options}
    check_equal(lambda: GRPOModule(**nested(policy=checkpoints("qwen3_vl"), **settings)), monkeypatch)


def test_supervision_works_there(checkpoints, monkeypatch):
    check_equal(lambda: SFTModule(**nested(policy=checkpoints("qwen2_5_vl"), **LORA, **SETTINGS)), monkeypatch)


def test_kept_image_features_come_back_to_the_device(checkpoints, monkeypatch, tmp_path):
    """The first run writes them, the second reads them."""
    settings = {"policy": checkpoints("qwen3_vl"), "group_size": 4, **LORA, **SETTINGS}
    check_equal(lambda: GRPOModule(**nested(vision_cache=str(tmp_path / "images"), **settings)), monkeypatch)
    assert list((tmp_path / "images").iterdir())


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_fixed_shapes_decode_there(temperature, monkeypatch):
    policy = ending_policy("qwen2_5_vl").float()
    expected = write(policy, prompts_for(policy), StaticDecoder(), temperature=temperature)
    with second_device(monkeypatch) as device:
        policy.to(device)
        batch = StudyCollator(policy.processor, "Report:", use_indication=True)(unequal_studies()).to(device)
        with torch.no_grad():
            prompts = policy.embed(batch)
        rollout = write(policy, prompts, StaticDecoder(), temperature=temperature)
        found = [x.cpu() for x in (rollout.completion_ids, rollout.completion_mask)]
    assert torch.equal(found[0], expected.completion_ids)
    assert torch.equal(found[1], expected.completion_mask)
    assert len(set(rollout.texts)) > 1


def test_a_copied_reference_moves_there_once(monkeypatch):
    """It is made before Lightning moves the policy."""
    policy = family_policy("qwen2_5_vl", dtype=torch.float32).eval()
    policy.keep_reference()
    operation, moved = tests.second_device.run, []

    def watched(func, args, kwargs):
        result = operation(func, args, kwargs)
        tensors = [x for x in (*tree_leaves(args), result) if isinstance(x, torch.Tensor) and x.dim()]
        if func._schema.name in MOVES and len({x.device for x in tensors}) > 1:
            moved.append(func)
        return result

    with second_device(monkeypatch) as device:
        monkeypatch.setattr(tests.second_device, "run", watched)
        policy.to(device)
        assert len(moved) == len([*policy.parameters(), *policy.buffers()])
        counts = []
        for _ in range(3):
            moved.clear()
            with policy.reference():
                assert {p.device for p in policy.parameters()} == {device}
            counts.append(len(moved))
    assert counts == [len(policy.reference_weights), 0, 0]


@pytest.mark.parametrize("decoder", [None, StaticDecoder], ids=["shrinking", "fixed"])
def test_bfloat16_samples_there_from_the_distribution_of_the_loss(decoder, monkeypatch):
    """Also where biases of queries and keys make scores large, which products in bfloat16 would round."""
    policy = family_policy("qwen2_5_vl", dtype=torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in policy.base.model.language_model.layers:
            for module in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                module.bias.copy_(8 * torch.randn(module.bias.shape, generator=generator))
    with second_device(monkeypatch) as device:
        policy.to(device)
        batch = StudyCollator(policy.processor, "Report:", use_indication=True)(unequal_studies()).to(device)
        with torch.no_grad():
            prompts = policy.embed(batch)
            rollout = write(policy, prompts, decoder and decoder(), temperature=1.0, num_tokens=30)
            again = policy.logps(prompts, rollout.completion_ids, rollout.completion_mask).logps
        gap = ((again - rollout.old_logps).abs().sum() / rollout.completion_mask.sum()).item()
    assert 0 < gap < 0.025


def test_scores_accumulate_there(monkeypatch):
    texts, target = ["Cardiomegaly.", "Small effusion."], ["Cardiomegaly. Effusion.", "Lungs are clear."]
    expected = []

    def metrics():
        return [kind(labeler=RulesLabeler()) for kind in (CEF1, MCCS)]

    for metric in metrics():
        metric.update(texts, target)
        expected.append(float(metric.compute()))
    with second_device(monkeypatch) as device:
        for metric, value in zip(metrics(), expected, strict=True):
            metric.to(device)
            metric.update(texts, target)
            assert metric.compute().device == device
            assert float(metric.compute()) == pytest.approx(value)


def test_chexbert_labels_there(tmp_path, monkeypatch):
    write_lookalike(tmp_path)
    generator = torch.Generator().manual_seed(0)
    texts = [random_text(generator) for _ in range(20)] + ODD
    expected = CheXbertLabeler(tmp_path / "chexbert.pth", tmp_path, "cpu")(texts)
    with second_device(monkeypatch) as device:
        labels = CheXbertLabeler(tmp_path / "chexbert.pth", tmp_path, device)(texts)
        assert torch.equal(labels.cpu(), expected)


def test_the_device_refuses_what_a_gpu_refuses(monkeypatch):
    """Else nothing above would tell anything."""
    with second_device(monkeypatch) as device:
        here, there = torch.arange(3.0), torch.arange(3.0, device=device)
        assert there.device == device
        assert (there + 1 + torch.tensor(1.0)).tolist() == [2.0, 3.0, 4.0]  # numbers may come from the CPU
        assert there[torch.tensor([2, 0])].tolist() == [2.0, 0.0]  # and so may an index
        refused = [
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[torch.tensor([0], device=device)],
            lambda: there.where(here > 1, 0.0),
            lambda: there.index_add_(0, torch.tensor([0]), there[:1]),
            lambda: there.numpy(),
        ]
        for operation in refused:
            with pytest.raises(DeviceError):
                operation()
        weight = torch.ones(3, device=device, requires_grad=True)
        (weight * there).sum().backward()
        assert weight.grad.device == device
        assert weight.grad.tolist() == [0.0, 1.0, 2.0]
        assert there.cpu().device.type == "cpu"
        there[1:] = 5
        assert there.tolist() == [0.0, 5.0, 5.0]
