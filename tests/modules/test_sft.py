"""Steps of supervision without a finite gradient, which weights decay, the findings list, and scores of samples."""

import dataclasses

import lightning as L
import pytest
import torch

from mrg.metrics import CEF1, MCCS, RulesLabeler
from mrg.metrics.format import parse_completion
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.sampling import sample
from mrg.modules.sft import SFTModule
from tests.modules.test_grpo import SETTINGS, FixedData, trainer, weights
from tests.nested import nested


@pytest.fixture
def saved(policy, tmp_path):
    policy.save(tmp_path / "policy")
    return str(tmp_path / "policy")


class Broken(SFTModule):
    """Has no finite loss in some of its steps."""

    def __init__(self, broken, **kwargs):
        super().__init__(**kwargs)
        self.broken, self.seen = broken, []

    def _losses(self, batch):
        total, *others = super()._losses(batch)
        return total * (float("nan") if self.global_step in self.broken else 1.0), *others

    def on_train_batch_end(self, *args):
        self.seen.append(weights(self))


def run(saved, studies, steps, broken=(), checkpoint=None, **settings):
    torch.manual_seed(0)
    options = {"lora": LoRA(4), "learning_rate": 1e-2, "warmup_steps": 0, **SETTINGS, **settings}
    module = Broken(broken, **nested(policy=saved, **options))
    lightning = trainer(steps)
    lightning.fit(module, FixedData(studies[:4], batch_size=2), ckpt_path=checkpoint)
    return module, lightning


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_without_a_finite_gradient_is_left_out(saved, studies, weight_decay):
    """Neither weights nor moments change, not even by decay; the next step is taken."""
    module, lightning = run(saved, studies, 4, broken=(1,), weight_decay=weight_decay)
    assert lightning.global_step == 4
    first, second, third, fourth = module.seen
    assert equal(first, second)
    assert not equal(second, third)
    assert not equal(third, fourth)
    assert all(w.isfinite().all() for w in fourth.values())
    assert {int(state["step"]) for state in lightning.optimizers[0].state.values()} == {3}
    assert module.patience.bad_steps == 0


def test_an_infinite_loss_is_a_bad_step_though_its_gradient_is_finite(saved, studies):
    """As the loss of a token with probability 0: only the value is infinite."""

    class Infinite(Broken):
        def _losses(self, batch):
            total, *others = SFTModule._losses(self, batch)
            return total + (float("inf") if self.global_step in self.broken else 0.0), *others

    torch.manual_seed(0)
    settings = {"lora": LoRA(4), "learning_rate": 1e-2, "warmup_steps": 0, **SETTINGS}
    module = Infinite((1,), **nested(policy=saved, **settings))
    trainer(3).fit(module, FixedData(studies[:4], batch_size=2))
    first, second, third = module.seen
    assert equal(first, second)
    assert not equal(second, third)
    module = Infinite(range(9), **nested(policy=saved, patience=3, **settings))
    with pytest.raises(RuntimeError, match="The loss was inf in 3 steps in a row, the last in round 2: check that"):
        trainer(9).fit(module, FixedData(studies[:4], batch_size=2))


def test_a_report_that_the_policy_cannot_write_breaks_a_step_alone(saved, studies):
    """Its banned token has the log-probability minus infinity."""
    odd = dataclasses.replace(studies[0], report="The heart <|vision_end|> is big.")
    settings = {"max_new_tokens": 60, "lora": LoRA(4), "warmup_steps": 0, "learning_rate": 1e-3}
    module = SFTModule(**nested(policy=saved, **{**SETTINGS, **settings}))
    trainer(4).fit(module, FixedData([odd, *studies[1:4]], batch_size=2))
    found = weights(module)
    assert all(w.isfinite().all() for w in found.values())
    assert all(float(w.abs().max()) > 0 for name, w in found.items() if "lora_B" in name)  # it trained on the others


def test_too_many_in_a_row_end_the_run_with_its_weights_whole(saved, studies):
    with pytest.raises(RuntimeError, match=r"norm was nan in 3 steps in a row, the last in round 4: lower model"):
        run(saved, studies, 9, broken=(0, 2, 3, 4), patience=3)


def test_the_count_is_resumed(saved, studies, tmp_path):
    """Two bad steps before a checkpoint and one after it are three."""
    _, lightning = run(saved, studies, 4, broken=(2, 3), patience=3)
    lightning.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["patience"]["bad_steps"] == 2
    with pytest.raises(RuntimeError, match="in 3 steps in a row, the last in round 4"):
        run(saved, studies, 9, broken=(4,), patience=3, checkpoint=str(tmp_path / "last.ckpt"))


def test_matrices_decay_and_vectors_do_not(saved, studies):
    """In a step without a gradient, AdamW's own formula: w (1 - rate * decay)."""
    module, _ = run(saved, studies, 0, lora=None, weight_decay=0.5, learning_rate=0.1, train_vision=True)
    optimizer = module.configure_optimizers()["optimizer"]
    start = weights(module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    sizes = {1: 0, 2: 0}
    for name, after in weights(module).items():
        expected = start[name] * (0.95 if after.ndim > 1 else 1.0)
        assert torch.allclose(after, expected, rtol=1e-6), name
        sizes[min(after.ndim, 2)] += 1
    assert min(sizes.values()) > 5


def test_each_report_of_a_test_is_labeled_once(saved, studies):
    class Counting(RulesLabeler):
        def __init__(self):
            super().__init__()
            self.calls = []

        def __call__(self, texts):
            self.calls.append(list(texts))
            return super().__call__(texts)

    labeler = Counting()
    module = SFTModule(policy=saved, lora=LoRA(4), labeler=labeler, **SETTINGS)
    module.write = lambda batch: [f"<report>{study.report[:40]}</report>" for study in batch.studies]
    scores = trainer(0).test(module, FixedData(studies, eval_batch_size=2), verbose=False)[0]
    assert [len(texts) for texts in labeler.calls] == [4, 2]  # batches of two and of one, each with its references
    reports = [row["prediction"] for row in module.predictions]
    assert torch.equal(torch.stack([row["labels"] for row in module.predictions]), RulesLabeler()(reports))
    target = [study.report for study in studies[:3]]
    assert torch.equal(torch.stack([row["target_labels"] for row in module.predictions]), RulesLabeler()(target))
    expected = MCCS(margin=0.5, labeler=RulesLabeler())(reports, target)
    assert scores["test/mccs"] == pytest.approx(float(expected))
    assert scores["test/ce_f1"] == pytest.approx(float(CEF1(labeler=RulesLabeler())(reports, target)))


THINKING = {"lora": LoRA(4), **SETTINGS, "think": "required", "max_new_tokens": 150}


QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Validated(FixedData):
    def read(self):
        return {"train": self.given, "val": self.given, "test": self.given}


def test_the_tokens_of_the_findings_list_have_their_own_weight(saved, studies):
    def losses(weight):
        torch.manual_seed(0)
        module = SFTModule(**nested(policy=saved, findings_weight=weight, **THINKING))
        lightning = trainer(1)
        lightning.validate(module, Validated(studies[:2], batch_size=2), verbose=False)
        batch = next(iter(lightning.datamodule.val_dataloader()))
        with torch.no_grad():
            total, count, in_lists = module._losses(batch)
            ids, mask = module.completions(batch)
            logps = module.policy.logps(module.policy.embed(batch), ids, mask).logps
        return module, batch, ids, mask, logps, float(total), float(count), float(in_lists)

    module, batch, ids, mask, logps, total, count, in_lists = losses(3.0)
    tokenizer = module.policy.processor.tokenizer
    expected_total = expected_count = expected_list = 0.0
    for row in range(len(batch)):
        text = ""
        for token, real, logp in zip(ids[row].tolist(), mask[row].tolist(), logps[row].tolist(), strict=True):
            if real:
                listed = "</think>" not in text  # before this token
                text += tokenizer.decode([token])
                expected_total -= logp * (3 if listed else 1)
                expected_count += 3 if listed else 1
                expected_list -= logp * listed
        assert "</think>" in text
    assert (total, count, in_lists) == pytest.approx((expected_total, expected_count, expected_list), rel=1e-4)
    assert losses(1.0)[6] == float(mask.sum())


def test_the_score_of_samples_is_that_of_samples(saved, studies):
    module = SFTModule(**nested(policy=saved, val_samples=3, **THINKING))
    lightning, plain = (L.Trainer(accelerator="cpu", **QUIET) for _ in range(2))
    data = Validated(studies[:4], eval_batch_size=2)
    lightning.validate(module, data, verbose=False)
    scores = dict(lightning.callback_metrics)
    reports, target = [], []
    for number, batch in enumerate(data.val_dataloader()):
        prompts = module.policy.embed(batch)
        rollout = sample(module.policy, prompts, 3, 150, generator=torch.Generator().manual_seed(number))
        reports += [parse_completion(text, "required").report for text in rollout.texts]
        target += [report for report in batch.target for _ in range(3)]
    assert len(reports) == 12
    assert float(scores["val/sampled_ce_f1"]) == pytest.approx(float(CEF1(labeler=RulesLabeler())(reports, target)))
    plain.validate(SFTModule(**nested(policy=saved, **THINKING)), data, verbose=False)
    assert "val/ce_f1" in plain.callback_metrics
    assert "val/sampled_ce_f1" not in plain.callback_metrics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"findings_weight": 0.0}, "findings_weight to be above 0"),
        ({"findings_weight": 2.0, "think": "absent"}, "no findings list to weight"),
        ({"val_samples": -1}, "val_samples to be at least 0"),
    ],
)
def test_refused_settings(saved, settings, message):
    with pytest.raises(ValueError, match=message):
        SFTModule(**nested(policy=saved, **{**THINKING, **settings}))
