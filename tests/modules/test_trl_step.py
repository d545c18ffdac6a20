"""A whole optimiser step of GRPOModule against one of TRL's trainer, on the completions that TRL sampled."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.families import LANGUAGE_LINEARS
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rl.reward import Rewards
from mrg.modules.rollout.sampling import Rollout
from tests.families import QWEN, family_policy, unequal_studies
from tests.modules.test_grpo import FixedData, trainer
from tests.nested import nested

trl = pytest.importorskip("trl", minversion="1.16")
datasets = pytest.importorskip("datasets")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # TRL and transformers
    pytest.mark.filterwarnings("ignore:Sampling and training disagree"),  # TRL hands over no logps of its sampling
]

PROMPT, GROUP, NUM_TOKENS = "Report:", 4, 10
STUDIES = unequal_studies()
LOSSES = {
    "grpo with KL": {"loss_type": "grpo", "kl_coef": 0.3},
    "grpo with corrected KL": {"loss_type": "grpo", "kl_coef": 0.3, "kl_ratio_correction": True},
    "dapo without KL": {"loss_type": "dapo", "kl_coef": 0.0},
}


class Pictures(FixedData):
    """The studies in their order."""

    def train_dataloader(self):
        return DataLoader(self.given, batch_size=len(self.given), collate_fn=self.collator)


class Recorded(trl.GRPOTrainer):
    """Remembers what was sampled, the loss, and the gradients before they are clipped."""

    def _generate_and_score_completions(self, inputs):
        self.sampled = super()._generate_and_score_completions(inputs)
        return self.sampled

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        self.result = loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return loss


@pytest.fixture(scope="module", params=QWEN)
def saved(request, tmp_path_factory):
    """A checkpoint whose completions end at different lengths."""
    policy = family_policy(request.param, dtype=torch.float32)
    with torch.no_grad():
        policy.base.lm_head.weight[policy.eos_id].mul_(5)
    folder = tmp_path_factory.mktemp("policy")
    policy.save(folder)
    return str(folder)


def paid(texts):
    """Rewards that differ within a group."""
    return [float(len(text)) + index % GROUP for index, text in enumerate(texts)]


def step_of_trl(folder, output, options):
    """TRL's trainer after its first step, on an adapter that already does something."""
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText

    policy = load_policy(folder)
    model, banned = AutoModelForImageTextToText.from_pretrained(folder), torch.tensor(policy.banned_ids)
    # One sampled image token would stop TRL. Its losses read the head's weight and do not see this.
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, banned, -1e4))
    prompts = [[{"role": "user", "content": PROMPT}]] * len(STUDIES)
    images = [[view.load() for view in study.views] for study in STUDIES]
    run = Recorded(
        model=model,
        reward_funcs=lambda completions, **_: paid([completion[0]["content"] for completion in completions]),
        args=trl.GRPOConfig(
            output_dir=str(output),
            per_device_train_batch_size=GROUP * len(STUDIES),
            num_generations=GROUP,
            max_completion_length=NUM_TOKENS,
            loss_type=options["loss_type"],
            beta=options["kl_coef"],
            use_bias_correction_kl=options.get("kl_ratio_correction", False),
            scale_rewards="group",
            shuffle_dataset=False,
            max_steps=1,
            learning_rate=0.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts, "images": images}),
        processing_class=policy.processor,
        peft_config=LoraConfig(r=4, lora_alpha=32, target_modules=LANGUAGE_LINEARS),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    run.train()
    return run


def step_of_mrg(folder, run, options):
    """The same step of GRPOModule in a Lightning trainer, each group in a pass of its own."""
    ids, mask = run.sampled["completion_ids"], run.sampled["completion_mask"].bool()
    texts = run.processing_class.tokenizer.batch_decode(ids, skip_special_tokens=True)
    rewards = torch.tensor(paid(texts), dtype=torch.float64)
    nothing = torch.zeros(len(texts), 14, dtype=torch.long)
    adapter = {f"policy.model.{n}": p.detach() for n, p in run.model.named_parameters() if "lora" in n}

    class Given(L.Callback):
        def on_fit_start(self, trainer, module):
            assert not module.load_state_dict(adapter, strict=False).unexpected_keys
            module.policy.banned_ids = []  # TRL's distribution has all tokens
            module.rollout = lambda prompts, attempt=0: Rollout(ids, mask, torch.zeros(mask.shape), texts, ~mask[:, -1])
            module.reward = lambda texts, target, study_id: Rewards(rewards, {}, (nothing, nothing))

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.prompt_ids = batch.prompt_ids

        def on_train_batch_end(self, trainer, module, *args):
            grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
            self.result = trainer.callback_metrics["train/loss"], grads

    module = GRPOModule(**nested(
        policy=folder, lora=LoRA(4, 32), prompt=PROMPT, think="absent", group_size=GROUP, max_new_tokens=NUM_TOKENS,
        warmup_steps=0, learning_rate=1e-9, max_grad_norm=1e9, micro_batch_tokens=1, **options,
    ))  # fmt: skip
    given = Given()
    running = trainer(1)
    running.callbacks.append(given)
    running.fit(module, Pictures(STUDIES, batch_size=len(STUDIES)))
    assert torch.equal(given.prompt_ids.repeat_interleave(GROUP, 0), run.sampled["prompt_ids"])
    return given.result


@pytest.mark.parametrize("name", list(LOSSES))
def test_loss_and_gradients_equal(name, saved, tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    run = step_of_trl(saved, tmp_path, LOSSES[name])
    assert len(set(run.sampled["completion_mask"].sum(1).tolist())) > 2
    loss, grads = step_of_mrg(saved, run, LOSSES[name])
    wanted_loss, wanted = run.result
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-5, abs=1e-6)
    assert grads.keys() == {f"policy.model.{name}" for name in wanted}
    assert len(wanted) == 3 * 7 * 2  # A and B of each linear layer
    for name, grad in wanted.items():
        assert (grads[f"policy.model.{name}"] - grad).norm() < 2e-5 * grad.norm(), name
