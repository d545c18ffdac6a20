import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy import policy as policy_module
from mrg.modules.policy import ranks
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.kv_cache import prefill
from mrg.modules.rollout.sampling import sample


def test_logps_equal_the_models_own_forward(policy, studies):
    """One study at a time, unpadded, through the model's public forward."""
    collate = StudyCollator(policy.processor, "Report:")
    batch = collate(studies[:4])
    ids = torch.randint(10, 300, (4, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([7, 4, 1, 6])[:, None]
    got = policy.logps(policy.embed(batch), ids, mask).logps
    assert got[~mask].abs().max() == 0
    for row, study in enumerate(studies[:4]):
        one, n = collate([study]), int(mask[row].sum())
        whole = torch.cat([one.prompt_ids, ids[row : row + 1, :n]], 1)
        logits = policy.base(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            mm_token_type_ids=(whole == policy.base.config.image_token_id).int(),
            pixel_values=one.pixel_values,
            image_grid_thw=one.image_grid_thw,
        ).logits[0, -n - 1 : -1]
        logits[:, policy.banned_ids] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, ids[row, :n, None])[:, 0]
        assert torch.allclose(got[row, :n], expected, atol=1e-4)


def test_rollout_logps_equal_recomputed_and_studies_stay_apart(policy, batch):
    prompts = policy.embed(batch)
    rollout = sample(policy, prompts, 3, 12, generator=torch.Generator().manual_seed(1))
    again = policy.logps(prompts, rollout.completion_ids, rollout.completion_mask).logps
    assert (again - rollout.old_logps).abs().max() < 1e-4
    assert len(rollout.texts) == 12
    assert not torch.isin(rollout.completion_ids[rollout.completion_mask], torch.tensor(policy.banned_ids)).any()


def test_greedy_is_the_same_alone_and_in_a_batch(policy, studies):
    collate = StudyCollator(policy.processor, "Report:")
    together = sample(policy, policy.embed(collate(studies[:4])), 1, 10, temperature=0.0).texts
    alone = [sample(policy, policy.embed(collate([s])), 1, 10, temperature=0.0).texts[0] for s in studies[:4]]
    assert together == alone


def test_sampling_depends_on_the_generator_alone(policy, batch):
    prompts = policy.embed(batch)
    first, second, other = (
        sample(policy.train(), prompts, 2, 8, generator=torch.Generator().manual_seed(seed)).texts for seed in (3, 3, 4)
    )
    assert first == second != other
    assert policy.training  # put back


def test_forced_image_token_cannot_be_sampled(policy, batch):
    image_id, prompts = policy.base.config.image_token_id, policy.embed(batch)
    with torch.no_grad():
        # Along the state that writes the first token, so that its logit is far above all others.
        policy.base.lm_head.weight[image_id] = 50 * prefill(policy, prompts)[0].mean(0)
    rollout = sample(policy, prompts, 4, 8, generator=torch.Generator().manual_seed(0))
    assert image_id not in rollout.completion_ids
    policy.banned_ids = [i for i in policy.banned_ids if i != image_id]
    assert (sample(policy, prompts, 4, 1).completion_ids == image_id).all()


def test_saved_policy_loads_and_its_reference_is_the_saved_one(policy, batch, tmp_path):
    policy.save(tmp_path)
    loaded = load_policy(str(tmp_path), LoRA(rank=4))
    ids = torch.randint(10, 300, (4, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 5, dtype=torch.bool)
    saved = policy.logps(policy.embed(batch), ids, mask).logps
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    assert (loaded.logps(loaded.embed(batch), ids, mask).logps - saved).abs().max() > 1e-3
    with loaded.reference():
        assert torch.allclose(loaded.logps(loaded.embed(batch), ids, mask).logps, saved, atol=1e-5)
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if ".visual." in n)
    assert all("lora" in n for n, p in loaded.named_parameters() if p.requires_grad)


def test_trained_adapter_is_merged_into_what_is_saved(policy, batch, tmp_path):
    policy.save(tmp_path / "start")
    adapted = load_policy(str(tmp_path / "start"), LoRA(rank=4))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    adapted.eval().save(tmp_path / "merged")
    merged = load_policy(str(tmp_path / "merged")).eval()
    ids = torch.randint(10, 300, (4, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 5, dtype=torch.bool)
    expected = adapted.logps(adapted.embed(batch), ids, mask).logps
    assert torch.allclose(merged.logps(merged.embed(batch), ids, mask).logps, expected, atol=1e-4)
    assert (expected - policy.logps(policy.embed(batch), ids, mask).logps).abs().max() > 1e-2
    assert adapted.has_adapter
    assert not merged.has_adapter


def copied(policy):
    """A policy whose reference is a copy of it, and which has been trained since."""
    policy.keep_reference()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.2)
    return policy


def completions_of(num_rows):
    ids = torch.randint(10, 300, (num_rows, 5), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones(num_rows, 5, dtype=torch.bool)


def test_a_copied_reference_is_what_was_copied_in_every_round(policy, batch):
    ids, mask = completions_of(4)
    with torch.no_grad():
        start = policy.logps(policy.embed(batch), ids, mask).logps
        trained = copied(policy).logps(policy.embed(batch), ids, mask).logps
        assert (trained - start).abs().max() > 0.01
        for _ in range(3):
            with policy.reference():
                assert torch.equal(policy.logps(policy.embed(batch), ids, mask).logps, start)
            assert torch.equal(policy.logps(policy.embed(batch), ids, mask).logps, trained)


def test_a_copied_reference_is_not_computed_from_casts_of_the_policy(policy, batch):
    """Within an autocast that keeps its casts of weights, unlike Lightning's."""
    ids, mask = completions_of(4)
    copied(policy)

    def logps():
        # With gradients: only casts that need one are kept.
        return policy.logps(policy.embed(batch), ids, mask).logps.detach()

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        trained = logps()
        with policy.reference():
            start = logps()
    assert not torch.equal(trained, start)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        assert torch.equal(logps(), trained)
        with policy.reference():
            assert torch.equal(logps(), start)
        assert torch.equal(logps(), trained)


def test_weights_come_back_where_a_reference_does_not_fit(policy, monkeypatch):
    """Memory may run out between two of them."""
    copied(policy)
    before, calls = [p.detach().clone() for p in policy.parameters()], []

    def exchange(parameter, value):
        calls.append(parameter)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return ranks.exchange(parameter, value)

    monkeypatch.setattr(policy_module, "exchange", exchange)
    with pytest.raises(torch.OutOfMemoryError), policy.reference():
        pass
    assert all(torch.equal(one, other) for one, other in zip(policy.parameters(), before, strict=True))


def test_bad_checkpoints(tmp_path, policy):
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        load_policy(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="type 'bert'"):
        load_policy(str(tmp_path))
    policy.save(tmp_path / "p")
    import safetensors.torch as st

    file = tmp_path / "p" / "model.safetensors"
    weights = {k: v for k, v in st.load_file(file).items() if "visual.blocks.0.attn" not in k}
    st.save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 4 weights"):
        load_policy(str(tmp_path / "p"))
