"""The losses against those of TRL, on the same log-probabilities: values and gradients."""

import pytest
import torch

from mrg.modules.rl.correction import token_weights
from mrg.modules.rl.entropy import entropy_term
from mrg.modules.rl.loss import LOSS_TYPES, grpo_loss
from tests.modules.rl.conftest import MAX_TOKENS
from tests.modules.rl.test_loss import rows

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL and transformers
BASE = {"loss_type": "grpo", "clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.0, "sapo_temperature_neg": 1.25}


def loss_of_trl(trainer, monkeypatch, tensors, options, micro_batches, limit=None, entropy=None, coef=0.0):
    """TRL's loss of a step, summed over its micro-batches, with our options in its words."""
    logps, old, ref, advantages, mask = tensors
    loss_type = options["loss_type"]
    monkeypatch.setattr(trainer, "loss_type", "grpo" if loss_type == "gspo" else loss_type)
    monkeypatch.setattr(trainer, "importance_sampling_level", "sequence" if loss_type == "gspo" else "token")
    monkeypatch.setattr(trainer, "epsilon_low", options["clip_low"])
    monkeypatch.setattr(trainer, "epsilon_high", options["clip_high"] + (loss_type == "cispo"))
    monkeypatch.setattr(trainer, "beta", options["kl_coef"])
    monkeypatch.setattr(trainer.args, "delta", options.get("dual_clip"))
    monkeypatch.setattr(trainer.args, "use_bias_correction_kl", options.get("kl_ratio_correction", False))
    monkeypatch.setattr(trainer.args, "steps_per_generation", len(micro_batches))
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", len(micro_batches), raising=False)
    monkeypatch.setattr(trainer.args, "sapo_temperature_neg", 1.25)  # TRL rounds it to float32, which 1.25 survives
    monkeypatch.setattr(trainer, "off_policy_mask_threshold", limit)
    monkeypatch.setattr(trainer, "entropy_coef", coef)
    monkeypatch.setattr(trainer, "_entropy_bonus_enabled", coef > 0)
    trainer.model.train()
    total = torch.zeros((), dtype=torch.float64)
    for part in micro_batches:
        given = (logps[part], torch.zeros_like(logps[part]) if entropy is None else entropy[part], None)
        monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, given=given, **__: given)
        inputs = {
            "prompt_ids": torch.full((len(part), 1), 2),
            "prompt_mask": torch.ones(len(part), 1, dtype=torch.long),
            "completion_ids": torch.full(mask[part].shape, 2),
            "completion_mask": mask[part].long(),
            "advantages": advantages[part],
            "old_per_token_logps": old[part],
            "ref_per_token_logps": ref[part],
            "num_items_in_batch": mask.sum(),
        }
        total = total + trainer._compute_loss(trainer.model, inputs)
    return total


def same(trainer, monkeypatch, tensors, options, micro_batches=(list(range(6)),)):
    """Whether our loss of the whole step and TRL's agree, and so do their gradients."""
    logps, mask = tensors[0], tensors[-1]
    ours, _ = grpo_loss(*tensors, 6, num_tokens=int(mask.sum()), max_tokens=MAX_TOKENS, **options)
    theirs = loss_of_trl(trainer, monkeypatch, tensors, options, micro_batches)
    (a,), (b,) = torch.autograd.grad(ours, logps), torch.autograd.grad(theirs, logps)
    return torch.allclose(ours, theirs, atol=1e-12, rtol=0) and torch.allclose(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
@pytest.mark.parametrize("seed", range(3))
def test_each_loss(trainer, monkeypatch, loss_type, kl_coef, seed):
    options = {**BASE, "loss_type": loss_type, "kl_coef": kl_coef}
    if loss_type == "cispo":
        options["clip_low"] = 1.0  # TRL has no lower bound
    assert same(trainer, monkeypatch, rows(seed), options)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo"])
def test_dual_clip(trainer, monkeypatch, loss_type):
    assert same(trainer, monkeypatch, rows(), {**BASE, "loss_type": loss_type, "dual_clip": 1.5})


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"])
def test_kl_with_ratio_correction(trainer, monkeypatch, loss_type):
    options = {**BASE, "loss_type": loss_type, "clip_low": 1.0, "kl_coef": 0.04, "kl_ratio_correction": True}
    assert same(trainer, monkeypatch, rows(), options)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_truncated_completions(trainer, monkeypatch, loss_type):
    *tensors, mask = rows()
    kept = mask & ~torch.tensor([True, False, False, False, True, False])[:, None]
    # TRL, too, is given the emptied mask; what it then divides by is its own choice. Its log of the shares of clipped
    # tokens divides by 0 in empty rows, the loss does not.
    assert same(trainer, monkeypatch, (*tensors, kept), {**BASE, "loss_type": loss_type, "clip_low": 1.0})


@pytest.mark.parametrize(
    ("loss_type", "agrees"),
    [("grpo", True), ("bnpo", False), ("dr_grpo", True), ("dapo", True), ("gspo", True), ("cispo", True)],
)
def test_micro_batches(trainer, monkeypatch, loss_type, agrees):
    options = {**BASE, "loss_type": loss_type, "clip_low": 1.0, "kl_coef": 0.04}
    # A mean over each micro-batch's own tokens, TRL's bnpo depends on the split, and so is not ours.
    assert same(trainer, monkeypatch, rows(), options, ([0, 1, 2], [3, 4, 5])) == agrees


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_off_policy_sequence_mask(trainer, monkeypatch, loss_type):
    logps, old, ref, advantages, mask = rows()
    advantages = torch.tensor([-1.0, -1.0, 1.0, -1.0, -0.5, 1.0], dtype=torch.float64)
    options = {**BASE, "loss_type": loss_type, "clip_low": 1.0}
    theirs = loss_of_trl(trainer, monkeypatch, (logps, old, ref, advantages, mask), options, [list(range(6))], 0.05)
    weights, sums = token_weights(None, 0.05, logps, old, old, advantages, mask)
    assert 0 < float(sums["off_policy"]) < 4
    ours, _ = grpo_loss(
        logps, old, ref, advantages, mask, 6, num_tokens=int(mask.sum()), max_tokens=MAX_TOKENS, weights=weights,
        **options,
    )  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_entropy_bonus(trainer, monkeypatch, loss_type):
    tensors = rows()
    logps, mask = tensors[0], tensors[-1]
    entropy = (logps.exp() * 3).detach().requires_grad_()
    options = {**BASE, "loss_type": loss_type, "clip_low": 1.0}
    theirs = loss_of_trl(trainer, monkeypatch, tensors, options, [list(range(6))], entropy=entropy, coef=0.3)
    ours, _ = grpo_loss(*tensors, 6, num_tokens=int(mask.sum()), max_tokens=MAX_TOKENS, **options)
    ours = ours + entropy_term(entropy, mask, 0.3, int(mask.sum()))
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)
    (a,), (b,) = torch.autograd.grad(ours, entropy), torch.autograd.grad(theirs, entropy)
    assert torch.allclose(a, b, atol=1e-12, rtol=0)
    assert bool((a[mask] < 0).all())
