"""Several steps in a round, sampling again, truncation, patience, memory, ranks."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from mrg.callbacks.results import ResultWriter
from mrg.datamodules.collate import StudyCollator
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rl.entropy import EntropySettings
from mrg.modules.rl.monitor import Patience
from mrg.modules.rl.reward import Rewards
from tests.callbacks.resuming import fit, newest
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness, module_on, trainer, weights
from tests.nested import nested

ROOT = Path(__file__).parents[2]


@pytest.fixture
def saved(policy, tmp_path):
    policy.save(tmp_path / "policy")
    return str(tmp_path / "policy")


class Constant:
    """Pays the same for all."""

    def __call__(self, texts, target, study_id):
        nothing = torch.zeros(len(texts), 14, dtype=torch.long)
        return Rewards(torch.full((len(texts),), 0.35, dtype=torch.float64), {}, (nothing, nothing))


def fitted(saved, studies, reward, steps=1, callbacks=(), batch_size=4, **settings):
    torch.manual_seed(0)
    options = {"lora": LoRA(4), "group_size": 4, "learning_rate": 1e-3, "warmup_steps": 1, **SETTINGS, **settings}
    module = GRPOModule(**nested(policy=saved, **options))
    module.reward = reward
    lightning = trainer(steps)
    lightning.callbacks.extend(callbacks)
    lightning.fit(module, FixedData(studies, batch_size=batch_size))
    return module, lightning


def test_minibatches_and_iterations_are_optimiser_steps(saved, studies):
    _, lightning = fitted(saved, studies[:4], Shortness(), steps=6, num_minibatches=2, num_iterations=3)
    assert lightning.global_step == 6
    assert lightning.fit_loop.total_batch_idx == 0  # all of one round
    with pytest.raises(ValueError, match=r"num_minibatches \(5\), but got 4"):
        fitted(saved, studies[:4], Shortness(), num_minibatches=5)


def test_a_second_iteration_is_clipped_against_the_rollout(saved, studies):
    """One step per round has the ratio 1; later ones move away from the policy that sampled."""
    settings = {"learning_rate": 3e-2, "kl_coef": 0.0}
    _, once = fitted(saved, studies[:4], Shortness(), steps=1, **settings)
    assert once.callback_metrics["train/clipped"] == 0
    _, often = fitted(saved, studies[:4], Shortness(), steps=8, num_iterations=8, **settings)
    assert often.callback_metrics["train/clipped"] > 0


@pytest.mark.parametrize("loss_type", ["bnpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_every_loss_trains(saved, studies, loss_type):
    module, lightning = fitted(saved, studies[:4], Shortness(), loss_type=loss_type, dual_clip=None)
    start = weights(module_on(saved, studies)[0])
    assert bool(torch.isfinite(lightning.callback_metrics["train/loss"]))
    assert any(not torch.equal(start[n], w) for n, w in weights(module).items())


def test_truncated_completions_send_no_gradient_where_masked(saved, studies):
    """Four tokens are too few to end, so that every completion is truncated."""
    start = weights(module_on(saved, studies)[0])
    settings = {"max_new_tokens": 4, "kl_coef": 0.0}
    masked, lightning = fitted(saved, studies[:4], Shortness(), mask_truncated=True, **settings)
    assert lightning.callback_metrics["train/truncated"] == 1
    assert all(torch.equal(start[n], w) for n, w in weights(masked).items())
    plain, _ = fitted(saved, studies[:4], Shortness(), **settings)
    assert any(not torch.equal(start[n], w) for n, w in weights(plain).items())


def test_a_copy_is_the_reference_where_all_weights_are_trained(saved, studies):
    settings = {"lora": None, "learning_rate": 1e-2, "kl_coef": 0.5}
    module, lightning = fitted(saved, studies[:4], Shortness(), steps=1, reference="copy", **settings)
    assert lightning.callback_metrics["train/kl"] == 0  # at the start they are one
    module, lightning = fitted(saved, studies[:4], Shortness(), steps=3, reference="copy", **settings)
    assert lightning.callback_metrics["train/kl"] > 1e-3
    batch = StudyCollator(module.policy.processor, "Report:")(studies[4:6])
    prompts = module.policy.embed(batch)
    rollout = module.rollout(prompts, batch)
    before = weights(module)
    start, _ = module_on(saved, studies, kl_coef=0.0, lora=None)
    of_start = start.policy.embed(batch)  # embeddings are trained too
    expected = start.policy.logps(of_start, rollout.completion_ids, rollout.completion_mask).logps
    assert torch.allclose(module.reference_logps(prompts, rollout, batch), expected, atol=1e-5)
    assert all(torch.equal(before[n], w) for n, w in weights(module).items())
    with pytest.raises(ValueError, match="needs a reference"):
        fitted(saved, studies[:4], Shortness(), **settings)


def test_a_run_is_not_resumed_with_another_reference(saved, tmp_path):
    """A copy is made of the policy that the settings name, which may have been trained again in the meantime."""
    settings = {"module": {"lora": None, "reference": "copy"}, "data": {"num_train": 4, "num_val": 2}}
    options = {"max_epochs": -1, "val_check_interval": 1.0, "limit_val_batches": 1}
    fit(tmp_path / "run", "grpo", saved, max_steps=1, **settings, **options)
    resumed = fit(tmp_path / "run", "grpo", saved, newest(tmp_path / "run"), max_steps=2, **settings, **options)
    assert resumed.trainer.global_step == 2
    policy = load_policy(saved)
    with torch.no_grad():
        policy.base.lm_head.weight[0, 0] += 1
    policy.save(saved)
    with pytest.raises(ValueError, match=r"have changed since the run started .* its reference model"):
        fit(tmp_path / "run", "grpo", saved, newest(tmp_path / "run"), max_steps=3, **settings, **options)


def test_a_copied_reference_holds_a_trained_vision_tower(saved, studies):
    """Beside a policy that was copied by hand at the start, and reads the images by its own tower."""
    settings = {"lora": None, "learning_rate": 1e-2, "kl_coef": 0.5, "train_vision": True, "reference": "copy"}
    module, _ = fitted(saved, studies[:4], Shortness(), steps=2, **settings)
    frozen = load_policy(saved, None, True).eval()
    batch = StudyCollator(module.policy.processor, "Report:")(studies[4:6])
    with torch.no_grad():
        prompts = module.policy.embed(batch)
        rollout = module.rollout(prompts, batch)
        ids, mask = rollout.completion_ids, rollout.completion_mask
        expected = frozen.logps(frozen.embed(batch), ids, mask).logps
        before, got = weights(module), module.reference_logps(prompts, rollout, batch)
        assert torch.allclose(got, expected, atol=1e-5)
        assert all(torch.equal(before[n], w) for n, w in weights(module).items())
        # By the trained tower's embeddings the reference would be another.
        with module.policy.reference():
            of_policy = module.round_values(prompts, rollout).logps
        assert (of_policy - expected).abs().max() > 1e-3
    tower = {name for name in module.policy.reference_weights if ".visual." in name}
    assert len(tower) > 5
    assert any(not torch.equal(before[f"policy.{name}"], module.policy.reference_weights[name]) for name in tower)


def test_old_log_probabilities_are_those_of_sampling_whatever_the_dropout(saved, studies):
    module, _ = module_on(saved, studies, steps=2, lora=LoRA(4, dropout=0.5), learning_rate=1e-2)
    module.train()
    batch = StudyCollator(module.policy.processor, "Report:")(studies[:2])
    prompts = module.policy.embed(batch)
    rollout = module.rollout(prompts, batch)
    values = module.round_values(prompts, rollout)
    assert torch.allclose(values.logps, rollout.old_logps, atol=1e-4)
    assert module.policy.training
    with torch.no_grad():
        dropped = module.policy.logps(
            prompts, rollout.completion_ids, rollout.completion_mask, module.temperature
        ).logps
    assert not torch.allclose(dropped, rollout.old_logps, atol=1e-2)  # as the loss computes them


def test_dead_groups_are_sampled_again(saved, studies):
    module, _ = module_on(saved, studies, resample_dead=2)
    batch = StudyCollator(module.policy.processor, "Report:")(studies[:3])
    prompts = module.policy.embed(batch)
    first = module.rollout(prompts, batch)

    class SecondStudyIsDeadAtFirst:
        calls, seen = 0, ()

        def __call__(self, texts, target, study_id):
            self.calls += 1
            self.seen = [*self.seen, len(texts)]
            total = torch.arange(len(texts), dtype=torch.float64)
            if self.calls < 2:
                total[4:8] = 0.5
            nothing = torch.zeros(len(texts), 14, dtype=torch.long)
            return Rewards(total, {}, (nothing, nothing))

    module.reward = SecondStudyIsDeadAtFirst()
    rollout, rewards = module.resample(prompts, batch, first, module.rewards(first, batch))
    assert module.reward.calls == 2  # once was enough
    assert module.reward.seen == [12, 4]  # what is live is not scored again
    for rows, same in ((slice(0, 4), True), (slice(4, 8), False), (slice(8, 12), True)):
        assert (rollout.texts[rows] == first.texts[rows]) == same
    again = module.rollout(prompts.rows(torch.tensor([1])), batch, [1], 1)
    assert rollout.texts[4:8] == again.texts
    width = again.completion_ids.shape[1]
    assert torch.equal(rollout.completion_ids[4:8, :width], again.completion_ids)
    assert torch.equal(rollout.completion_mask[4:8, :width], again.completion_mask)
    assert not rollout.completion_mask[4:8, width:].any()
    assert rewards.total.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 8, 9, 10, 11]


def test_rounds_in_which_nothing_can_be_learned_end_the_run(saved, studies):
    with pytest.raises(RuntimeError, match="equal rewards in 2 rounds in a row"):
        fitted(saved, studies, Constant(), steps=5, kl_coef=0.0, patience=2)
    _, lightning = fitted(saved, studies, Constant(), steps=3, patience=2)  # the KL term goes on
    assert lightning.global_step == 3


def test_rounds_whose_every_completion_is_masked_end_the_run(saved, studies):
    """Their rewards differ, but what is cut off sends no gradient."""
    with pytest.raises(RuntimeError, match=r"2 rounds in a row, or what differed was truncated.*max_new_tokens"):
        fitted(saved, studies, Shortness(), steps=5, kl_coef=0.0, patience=2, mask_truncated=True, max_new_tokens=2)


class MaskedFrom(L.Callback):
    """Masks truncated completions from a round on, and keeps the weights before it."""

    def __init__(self, number):
        self.number, self.before = number, None

    def on_train_batch_start(self, run, module, batch, batch_idx):
        if batch_idx == self.number:
            self.before = weights(module)
            module.loss_settings = dataclasses.replace(module.loss_settings, mask_truncated=True)


@pytest.mark.parametrize(
    "more", [{"kl_coef": 0.0}, {"kl_coef": 0.1}, {"kl_coef": 0.0, "entropy": EntropySettings(0.1)}]
)
def test_momentum_moves_nothing_where_every_completion_is_masked(saved, studies, more):
    """Masked completions enter neither the KL term nor the entropy bonus."""
    masked = MaskedFrom(1)
    module, _ = fitted(saved, studies, Shortness(), steps=2, callbacks=[masked], max_new_tokens=2, **more)
    assert all(torch.equal(masked.before[name], weight) for name, weight in weights(module).items())
    assert any(bool(weight.any()) for name, weight in masked.before.items() if "lora_B" in name)  # it has learned


def test_more_steps_than_studies_are_refused_before_the_first_round(saved, studies):
    with pytest.raises(ValueError, match=r"num_minibatches \(4\), but got 2: .* lower num_minibatches"):
        fitted(saved, studies[:2], Constant(), batch_size=8, num_minibatches=4)


@pytest.mark.parametrize("shared_prefix", ["auto", "off"])
def test_passes_hold_as_many_tokens_as_they_may(saved, studies, shared_prefix):
    """Of repeated rows each has a prompt of its own."""
    module, _ = module_on(saved, studies, shared_prefix=shared_prefix, micro_batch_tokens=400)
    batch = StudyCollator(module.policy.processor, "Report:")(studies[:4])
    prompts = module.policy.embed(batch)
    rollout = module.rollout(prompts, batch)
    sizes, hidden = [], module.policy.hidden

    def watched(embeds, *args):
        sizes.append(embeds.shape[0] * embeds.shape[1])
        return hidden(embeds, *args)

    module.policy.hidden = watched
    module.round_values(prompts, rollout)
    assert max(sizes) <= 400
    assert len(sizes) == (2 if shared_prefix == "off" else 1)


def test_steps_without_a_finite_gradient_are_skipped_and_end_the_run(saved, studies):
    patience = Patience(2)
    assert patience.takes(torch.tensor(1.0), 0)
    assert not patience.takes(torch.tensor(float("nan")), 1)
    assert patience.takes(torch.tensor(2.0), 2)  # one bad step is forgotten
    assert not patience.takes(torch.tensor(float("inf")), 3)
    with pytest.raises(RuntimeError, match=r"norm was nan in 2 steps in a row, the last in round 4: lower model"):
        patience.takes(torch.tensor(float("nan")), 4)

    class Broken(Shortness):
        def __call__(self, texts, target, study_id):
            rewards = super().__call__(texts, target, study_id)
            return rewards._replace(total=rewards.total * 1e300)  # the advantages overflow in float32

    module, data = module_on(saved, studies, advantage_scale="none", kl_coef=0.0, patience=3)
    module.reward, start = Broken(), weights(module)
    with pytest.raises(RuntimeError, match="norm was nan in 3 steps in a row, the last in round 2"):
        trainer(1).fit(module, data)
    assert all(torch.equal(start[n], w) for n, w in weights(module).items())


def test_a_second_step_of_a_round_computes_with_the_weights_of_the_first(saved, studies):
    """Under autocast, which keeps its casts of weights until a round ends."""
    module, lightning = fitted(saved, studies[:4], Shortness(), steps=1, kl_coef=0.0)
    seen = []
    forward = module.policy.logps
    module.policy.logps = lambda *args: (seen.append(forward(*args)), seen[-1])[1]
    batch = StudyCollator(module.policy.processor, "Report:")(studies[:1])  # one group, which has one order
    module.num_iterations, module.log = 2, lambda *args, **kwargs: None
    for group in lightning.optimizers[0].param_groups:
        group["lr"] = 1e-2
    with torch.autocast("cpu", torch.bfloat16):
        module.training_step(batch, 0)
    first, second = (part.logps.detach() for part in seen)
    assert float((first - second).abs().max()) > 1e-3


def test_no_memory_says_what_to_lower(saved, studies):
    module, _ = module_on(saved, studies)
    for phase, setting in (("policy", "micro_batch_tokens"), ("rollout", "group_size"), ("vision", "max_pixels")):
        with pytest.raises(RuntimeError, match=f"phase '{phase}'.*{setting}"), module.monitor.phase(phase):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_completions_of_a_round_are_shown(saved, studies, tmp_path):
    callbacks = [ResultWriter(tmp_path / "run")]
    fitted(saved, studies, Shortness(), steps=2, callbacks=callbacks, sample_every=2, batch_size=4)
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4  # of the first of two rounds
    assert len({row["id"] for row in rows}) == 1
    assert all(row["reward"] == row["shortness"] == -len(row["completion"]) for row in rows)
    assert all(row["round"] == 0 and row["target"] for row in rows)


def on_ranks(saved, output, *arguments):
    command = [sys.executable, "-m", "tests.modules.grpo_on_ranks", saved, str(output), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert not done.returncode, done.stderr
    return torch.load(output)


@pytest.mark.parametrize(
    ("loss_type", "kl_coef", "trained", "resample_dead", "strategies"),
    [
        pytest.param("grpo", 0.04, "adapter", 0, ["ddp", "fsdp"], marks=pytest.mark.slow),
        pytest.param("dapo", 0.0, "adapter", 0, ["ddp", "fsdp"], marks=pytest.mark.slow),
        pytest.param("grpo", 0.04, "all", 0, ["fsdp"], marks=pytest.mark.slow),
        pytest.param("grpo", 0.0, "adapter", 2, ["fsdp"], marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(saved, tmp_path, loss_type, kl_coef, trained, resample_dead, strategies):
    """Of unequal lengths, and with groups without signal, which one rank may hold, and sample again, alone."""
    settings = (loss_type, kl_coef, trained, resample_dead)
    one = on_ranks(saved, tmp_path / "one.pt", "one", *settings)
    start = load_policy(saved, LoRA(4) if trained == "adapter" else None).state_dict()
    for strategy in strategies:
        two = on_ranks(saved, tmp_path / "two.pt", strategy, *settings)
        assert [name for name, _ in two["logged"]] == [name for name, _ in one["logged"]]
        for (name, value), (_, expected) in zip(two["logged"], one["logged"], strict=True):
            assert value == pytest.approx(expected, rel=1e-3, abs=1e-5), name
        weights, others = one["weights"], two["weights"]
        assert set(weights) == set(others)
        moved = max(
            float((w - start[n.removeprefix("policy.")]).abs().max()) for n, w in weights.items() if "lora_A" not in n
        )
        assert moved > 1e-3
        # Adam's first steps are signs times the rate: an entry whose gradient is rounding noise may take another sign.
        different = sum(int((~torch.isclose(weights[n], others[n], atol=1e-4)).sum()) for n in weights)
        assert different <= 1e-3 * sum(w.numel() for w in weights.values())
