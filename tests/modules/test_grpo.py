import dataclasses

import lightning as L
import pytest
import torch

from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.collate import StudyCollator
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.lora import LoRA
from mrg.modules.rl.batch import MicroBatch, Step
from mrg.modules.rl.loss import LOSS_TYPES
from mrg.modules.rl.reward import RewardError, Rewards
from mrg.modules.rollout.sampling import sample
from mrg.modules.sft import SFTModule
from tests.nested import nested


class FixedData(ReportDataModule):
    """Given studies as all three splits."""

    def __init__(self, studies, **kwargs):
        super().__init__(num_workers=0, **kwargs)
        self.given = studies

    def read(self):
        return {"train": self.given, "val": self.given[:2], "test": self.given[:3]}


@pytest.fixture
def saved(policy, tmp_path):
    policy.save(tmp_path / "policy")
    return str(tmp_path / "policy")


SETTINGS = {"prompt": "Report:", "think": "absent", "max_new_tokens": 10, "max_pixels": 112 * 112}


class Shortness:
    """Pays for short completions: a reward that a random policy can earn."""

    def __call__(self, texts, target, study_id):
        rewards = torch.tensor([-float(len(text)) for text in texts], dtype=torch.float64)
        nothing = torch.zeros(len(texts), 14, dtype=torch.long)
        return Rewards(rewards, {"shortness": rewards}, (nothing, nothing))


def trainer(steps, **settings):
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **settings,
    )


def module_on(saved, studies, batch_size=4, steps=0, **kwargs):
    """A GRPO module, after some rounds of learning to be short, and its data."""
    torch.manual_seed(0)
    settings = {"group_size": 4, "lora": LoRA(4), "learning_rate": 1e-3, "warmup_steps": 1, **SETTINGS, **kwargs}
    module = GRPOModule(**nested(policy=saved, **settings))
    data = FixedData(studies, batch_size=batch_size)
    if steps:
        module.reward = Shortness()
        trainer(steps).fit(module, data)
    else:
        module.trainer = trainer(0)
        module.trainer.datamodule = data
        module.setup("fit")
    return module, data


def weights(module):
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


def rewarded(module, studies, rewards):
    """Loss gradient of a rollout to which the given rewards are paid."""
    from mrg.modules.rl.advantage import group_advantages

    batch = StudyCollator(module.policy.processor, "Report:")(studies)
    prompts = module.policy.embed(batch)
    rollout = sample(module.policy, prompts, 4, 10, generator=torch.Generator().manual_seed(0))
    step = Step(
        rollout, group_advantages(rewards, 4), None, list(range(len(studies))), num_completions=len(rollout.texts)
    )
    loss, _ = module.loss(prompts, step, MicroBatch.of(rollout, step.groups, 4))
    module.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}, rollout, prompts


def test_equal_rewards_give_exactly_zero_gradient(saved, studies):
    module, _ = module_on(saved, studies, kl_coef=0.0)
    grads, _, _ = rewarded(module, studies[:4], torch.full((16,), 0.35))
    assert grads
    assert all(g.abs().max() == 0 for g in grads.values())


def test_gradient_is_that_of_reinforce_by_autograd(saved, studies):
    """At the first step the ratio is 1, so the gradient is the mean over completions of A * mean grad logp."""
    module, _ = module_on(saved, studies, kl_coef=0.0)
    rewards = torch.rand(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads, rollout, prompts = rewarded(module, studies[:4], rewards)
    groups = rewards.view(4, 4)
    advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    logps = module.policy.logps(prompts, rollout.completion_ids, rollout.completion_mask).logps
    surrogate = -(advantages * logps.sum(1) / rollout.completion_mask.sum(1)).mean()
    module.zero_grad()
    surrogate.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(grads[name], parameter.grad, atol=1e-6), name


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_change_nothing(saved, studies, loss_type):
    """Neither the loss nor a gradient, in passes of other groups in another order."""
    module, _ = module_on(saved, studies, loss_type=loss_type)
    batch = StudyCollator(module.policy.processor, "Report:")(studies[:4])
    prompts = module.policy.embed(batch)
    rollout = module.rollout(prompts, batch)
    advantages = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    num_tokens = float(rollout.completion_mask.sum())
    ref_logps = module.reference_logps(prompts, rollout, batch)
    step = Step(rollout, advantages, ref_logps, list(range(4)), num_completions=16, num_tokens=num_tokens)
    losses, grads = [], []
    for parts in ([[0, 1, 2, 3]], [[2], [3, 0], [1]]):
        module.zero_grad()
        shares = [module.loss(prompts, step, MicroBatch.of(rollout, part, 4))[0] for part in parts]
        for share in shares:
            share.backward()
        losses.append(float(sum(share.detach() for share in shares)))
        grads.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
    whole, split = grads
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-6)
    assert max(g.abs().max() for g in whole.values()) > 1e-3
    assert all(torch.allclose(whole[n], split[n], atol=1e-6) for n in whole)


def test_full_training_reaches_embeddings_and_vision_in_several_micro_batches(saved, studies):
    settings = {"lora": None, "kl_coef": 0.0, "train_vision": True}
    start = weights(module_on(saved, studies, **settings)[0])
    whole, split = (
        weights(module_on(saved, studies, steps=1, micro_batch_tokens=m, **settings)[0]) for m in (10_000, 1)
    )
    for part in ("visual.patch_embed", "embed_tokens", "layers.0.self_attn.q_proj"):
        name = next(n for n in whole if part in n and n.endswith("weight"))
        assert (whole[name] - start[name]).abs().max() > 1e-6, part
    # Adam's first step is the gradient's sign times the rate, so that entries without gradient may differ.
    different = sum(int((~torch.isclose(whole[n], split[n], atol=2e-6)).sum()) for n in whole)
    assert different < 1e-3 * sum(p.numel() for p in whole.values())


def test_gradient_checkpointing_changes_nothing(saved, studies):
    plain, saving = (module_on(saved, studies, steps=2, gradient_checkpointing=on)[0] for on in (False, True))
    # Layers recompute only where both hold; a loaded model starts in eval mode.
    assert saving.policy.base.model.language_model.is_gradient_checkpointing
    assert saving.policy.base.model.language_model.layers[0].training
    a, b = weights(plain), weights(saving)
    assert all(torch.allclose(a[n], b[n], atol=2e-6) for n in a)


def test_same_seed_same_training_other_seed_other(saved, studies):
    a, b, c = (weights(module_on(saved, studies, steps=2, seed=seed)[0]) for seed in (0, 0, 1))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(not torch.equal(a[n], c[n]) for n in a)


def test_reward_is_learned(saved, studies):
    """Paid for short completions, the policy comes to write shorter ones."""
    module, data = module_on(saved, studies, learning_rate=3e-3, kl_coef=0.0, lora=None)
    module.reward = Shortness()

    def length():
        prompts = module.policy.embed(StudyCollator(module.policy.processor, "Report:")(studies))
        texts = sample(module.policy, prompts, 8, 10, generator=torch.Generator().manual_seed(9)).texts
        return sum(map(len, texts)) / len(texts)

    before = length()
    trainer(20).fit(module, data)
    assert length() < 0.85 * before


def test_failing_reward_stops_the_run_with_the_study(saved, studies):
    class Broken:
        name = "broken"

        def __call__(self, texts):
            raise OSError("no weights")

    module, _ = module_on(saved, studies)
    module.reward.labeler = Broken()
    batch = StudyCollator(module.policy.processor, "Report:")(studies[:2])
    rollout = module.rollout(module.policy.embed(batch), batch)
    with pytest.raises(RewardError, match="failed on study train-00000: OSError: no weights "):
        module.rewards(rollout, batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "group_size to be at least 2, but got 1"),
        ({"temperature": 0.0}, "temperature to be above 0, but got 0.0"),
        ({"think": "maybe"}, "'required' or 'absent', but got 'maybe'"),
        ({"lora": None}, "needs a reference"),
        ({"train_vision": True}, "its adapter off, whose vision tower is trained too"),
        ({"micro_batch_tokens": -1}, "micro_batch_tokens to be at least 1, but got -1"),
        ({"advantage_scale": "std"}, "'group', 'batch' or 'none', but got 'std'"),
        ({"max_prompt_length": 5}, "Lower max_pixels or max_views"),
    ],
)
def test_bad_settings(saved, studies, settings, message):
    with pytest.raises(ValueError, match=message):
        module_on(saved, studies, steps=1, **settings)


def test_sft_overfits_and_its_loss_is_the_mean_over_tokens(saved, studies):
    torch.manual_seed(0)
    module = SFTModule(
        **nested(
            policy=saved, train_vision=True, learning_rate=3e-3, warmup_steps=1, **{**SETTINGS, "max_new_tokens": 90}
        )
    )
    data = FixedData(studies[:2], batch_size=2)
    trainer(60).fit(module, data)
    batch = data.collator(studies[:2])
    ids, mask = module.completions(batch)
    logps = module.policy.logps(module.policy.embed(batch), ids, mask).logps
    total, count, _ = module._losses(batch)
    loss = total / count
    assert float(loss) == pytest.approx(float(-logps.sum() / mask.sum()), rel=1e-5)
    assert float(loss) < 0.3
    texts = sample(module.policy, module.policy.embed(batch), 1, 90, temperature=0.0).texts
    assert texts == [f"<report>{study.report}</report>" for study in studies[:2]]


def test_sft_starts_in_training_mode_and_does_not_teach_to_stop_early(saved, studies):
    torch.manual_seed(0)
    module = SFTModule(policy=saved, gradient_checkpointing=True, **{**SETTINGS, "max_new_tokens": 20})
    module.trainer = trainer(0)
    module.trainer.datamodule = FixedData(studies)
    module.setup("fit")
    assert module.policy.base.model.language_model.layers[0].training
    ids, mask = module.completions(module.trainer.datamodule.collator(studies[:2]))
    assert ids.shape == (2, 20)
    assert mask.all()
    assert module.policy.eos_id not in ids


def test_sft_target_with_thinking():
    from mrg.metrics import RulesLabeler
    from mrg.modules.completion import target_text

    for report, thinking in (
        ("The heart is enlarged. Possible pneumonia.", "Cardiomegaly, Pneumonia (uncertain)"),
        ("The lungs are clear.", "No Finding"),
    ):
        text = target_text(report, RulesLabeler()([report])[0], "required")
        assert text == f"<think>{thinking}</think><report>{report}</report>"


def test_every_image_is_encoded_once_a_round_and_without_gradient(saved, studies, monkeypatch):
    """In whole rounds with a reference, groups sampled again, and a pass for each group."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Visual

    calls = []
    forward = Visual.forward

    def counted(self, pixels, *args, **kwargs):
        calls.append((len(pixels), torch.is_grad_enabled()))
        return forward(self, pixels, *args, **kwargs)

    monkeypatch.setattr(Visual, "forward", counted)
    module_on(saved, studies, steps=2, micro_batch_tokens=1, resample_dead=1, gradient_checkpointing=True)
    assert len(calls) == 2
    assert not any(with_gradient for _, with_gradient in calls)
    batch = StudyCollator(module_on(saved, studies)[0].policy.processor, "Report:")(studies)
    assert sum(patches for patches, _ in calls) == len(batch.pixel_values)  # two rounds of four of the eight studies


def test_a_round_without_any_image(saved, studies):
    """Of both kinds of training, with a reference, and with the vision tower trained."""
    bare = [dataclasses.replace(study, views=()) for study in studies[:4]]
    module, _ = module_on(saved, bare, steps=1)
    assert any(float(w.abs().max()) > 0 for name, w in weights(module).items() if "lora_B" in name)
    module_on(saved, bare, steps=1, lora=None, reference="copy", train_vision=True)
    supervised = SFTModule(**nested(policy=saved, warmup_steps=1, **SETTINGS))
    trainer(1).fit(supervised, FixedData(bare, batch_size=2))
