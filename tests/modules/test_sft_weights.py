"""Every token of a step, and of a split, weighs the same."""

import subprocess
import sys

import lightning as L
import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from tests.modules.sft_on_ranks import build, unequal
from tests.modules.test_grpo import FixedData


@pytest.fixture
def saved(policy, tmp_path):
    policy.save(tmp_path / "policy")
    return str(tmp_path / "policy")


def trainer(steps, **settings):
    return L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip


def fit(saved, batch_size, accumulate=1, steps=1, count=4):
    L.seed_everything(0, verbose=False)
    module = build(saved)
    settings = {"accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    trainer(steps, **settings).fit(module, FixedData(unequal(count), batch_size=batch_size))
    return module


def by_hand(module, studies):
    """Gradient and value of the mean over all tokens of some studies, each read alone."""
    policy = module.policy
    parameters = dict(module.named_parameters())
    collator, total, count = StudyCollator(policy.processor, "Report:"), 0.0, 0
    for study in studies:
        ids = policy.processor.tokenizer(f"<report>{study.report}</report>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*ids, policy.eos_id]])
        logps = policy.logps(policy.embed(collator([study])), ids, torch.ones_like(ids, dtype=torch.bool)).logps
        total, count = total - logps.sum(), count + ids.numel()
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    gradients = torch.autograd.grad(total / count, list(trained.values()), allow_unused=True)
    return dict(zip(trained, gradients, strict=True)), float(total.detach() / count)


def assert_equal(found, expected, tolerance=1e-6):
    """By the norm of the difference, as a share of the norm."""
    pairs = [(found[name], value) for name, value in expected.items() if value is not None]
    assert len(pairs) > 20
    apart = sum(float((a - b).double().square().sum()) for a, b in pairs) ** 0.5
    assert apart < tolerance * sum(float(b.double().square().sum()) for _, b in pairs) ** 0.5


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 1), (1, 4), (2, 2)])
def test_a_step_is_the_mean_over_its_tokens_however_it_is_cut(saved, batch_size, accumulate):
    studies = unequal()
    assert len({len(study.report) for study in studies}) > 1
    module = fit(saved, batch_size, accumulate)
    start = build(saved)
    start.policy = start.load()
    gradient, loss = by_hand(start, studies)
    assert len(module.steps) == 1
    assert_equal(module.steps[0], gradient)
    assert module.logged[-1] == pytest.approx(loss, rel=1e-6)


def test_the_last_step_of_an_epoch_has_fewer_batches(saved):
    """Its gradient is not divided by the batches that it lacks: three studies are steps of two and of one."""
    whole = fit(saved, 1, accumulate=2, steps=2, count=3)
    alone = fit(saved, 1, accumulate=1, steps=3, count=3)
    norms = [sum(float(g.square().sum()) for g in step.values()) ** 0.5 for step in (whole.steps[1], alone.steps[2])]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)  # after two small steps or one, the same study
    assert whole.logged[2] == pytest.approx(alone.logged[2], rel=0.05)


@pytest.mark.parametrize("eval_batch_size", [1, 2, 3, 5])
def test_the_held_out_loss_does_not_depend_on_the_batches(saved, eval_batch_size):
    studies = unequal(5)

    class Held(FixedData):
        def read(self):
            return {"train": studies, "val": studies, "test": studies}

    module = build(saved)
    found = trainer(1).validate(module, Held(studies, eval_batch_size=eval_batch_size), verbose=False)[0]
    assert found["val/loss"] == pytest.approx(by_hand(module, studies)[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "accumulate"), [("ddp", 1), ("ddp", 2), ("fsdp", 1), ("fsdp", 2)])
def test_ranks_change_nothing(saved, tmp_path, strategy, accumulate):
    results = {}
    for name, parts in (("one", 1), (strategy, accumulate)):
        output = tmp_path / f"{name}-{parts}.pt"
        command = [sys.executable, "-m", "tests.modules.sft_on_ranks", saved, str(output), name, str(parts)]
        subprocess.run(command, check=True, timeout=300)
        results[name] = torch.load(output)
    assert_equal(results[strategy]["gradient"], results["one"]["gradient"])
    for split in ("train", "val"):
        assert results[strategy][split] == pytest.approx(results["one"][split], rel=1e-6)
