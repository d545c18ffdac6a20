"""Decoding against one copy of each prompt gives what transformers' `generate` gives with a copy per completion."""

import pytest
import torch
from transformers import LogitsProcessor

from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.kv_cache import CUDA_INTERVAL, KVCache
from mrg.modules.rollout.sampling import sample
from tests.families import QWEN, family_policy, unequal_studies

GROUP = 4
NUM_TOKENS = 14


def ending_policy(family="qwen2_5_vl", dtype=torch.float64, **kwargs):
    """A policy whose end token is likely after some tokens and unlikely after others."""
    policy = family_policy(family, LoRA(4), dtype=dtype, **kwargs)
    with torch.no_grad():
        policy.base.lm_head.weight[policy.eos_id].mul_(3)
    return policy.eval()


def batch_for(policy):
    return StudyCollator(policy.processor, "Report:", use_indication=True)(unequal_studies())


class SharedNoise(LogitsProcessor):
    """The sampler's own rule, so that the greedy choice is its sample."""

    def __init__(self, banned, temperature, seed):
        self.banned, self.temperature = banned, temperature
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids, scores):
        scores[:, self.banned] = -torch.inf
        log_probs = torch.log_softmax(scores / (self.temperature or 1.0), -1)
        if not self.temperature:
            return log_probs
        return log_probs - torch.empty(scores.shape).exponential_(generator=self.generator).log()


def generated(policy, batch, temperature=0.0, seed=0):
    """Ids (N, C) by transformers, every prompt repeated, prompts padded on the left."""
    ids = batch.prompt_ids.repeat_interleave(GROUP, 0)
    images = torch.split(batch.image_grid_thw, [len(study.views) for study in batch.studies])
    patches = torch.split(batch.pixel_values, [int(grid.prod(1).sum()) for grid in images])
    with torch.no_grad():
        whole = policy.model.generate(
            input_ids=ids,
            attention_mask=batch.prompt_mask.repeat_interleave(GROUP, 0).long(),
            mm_token_type_ids=(ids == policy.base.config.image_token_id).int(),
            pixel_values=torch.cat([x for x in patches for _ in range(GROUP)]),
            image_grid_thw=torch.cat([x for x in images for _ in range(GROUP)]),
            do_sample=False,
            use_cache=True,
            max_new_tokens=NUM_TOKENS,
            eos_token_id=policy.eos_id,
            pad_token_id=policy.pad_id,
            logits_processor=[SharedNoise(policy.banned_ids, temperature, seed)],
        )
    return whole[:, ids.shape[1] :]


@pytest.fixture
def sizes(monkeypatch):
    """Rows left after each compaction."""
    seen = []
    compact = KVCache.compact

    def counted(self, going):
        keep = compact(self, going)
        if keep is not None:
            seen.append(len(keep))
        return keep

    monkeypatch.setattr(KVCache, "compact", counted)
    return seen


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("family", QWEN)
def test_tokens_equal_those_of_repeated_generate(family, temperature, sizes):
    policy = ending_policy(family)
    batch = batch_for(policy)
    rollout = sample(policy, policy.embed(batch), GROUP, NUM_TOKENS, temperature, torch.Generator().manual_seed(5))
    assert torch.equal(rollout.completion_ids, generated(policy, batch, temperature, 5))
    ended = ((rollout.completion_ids == policy.eos_id) & rollout.completion_mask).any(1)
    assert torch.equal(ended, ~rollout.truncated)
    if temperature:  # rows did end early, and their places were given up
        assert len(set(rollout.completion_mask.sum(1).tolist())) > 3
        assert sizes
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("family", QWEN)
def test_a_row_does_not_depend_on_when_the_others_end(family, monkeypatch, sizes):
    policy = ending_policy(family)
    prompts = policy.embed(batch_for(policy))

    def rollout(seed):
        return sample(policy, prompts, GROUP, NUM_TOKENS, generator=torch.Generator().manual_seed(seed))

    compacted = [rollout(seed) for seed in range(3)]
    assert sizes
    monkeypatch.setattr(KVCache, "compact", lambda self, going: None)
    for seed, one in enumerate(compacted):
        other = rollout(seed)
        assert torch.equal(one.completion_ids, other.completion_ids)
        assert torch.equal(one.completion_mask, other.completion_mask)
        assert (one.old_logps - other.old_logps).abs().max() < 1e-6
        assert one.texts == other.texts


def test_looking_less_often_at_who_still_writes_changes_nothing(monkeypatch, sizes):
    """As on a GPU, which has to wait for each look."""
    policy = ending_policy()
    prompts = policy.embed(batch_for(policy))

    def rollouts():
        return [
            sample(policy, prompts, GROUP, NUM_TOKENS, generator=torch.Generator().manual_seed(i)) for i in range(3)
        ]

    expected, each = rollouts(), list(sizes)
    prepare = KVCache.__init__

    def patient(self, *args):
        prepare(self, *args)
        self.interval = CUDA_INTERVAL

    monkeypatch.setattr(KVCache, "__init__", patient)
    sizes.clear()
    for one, other in zip(rollouts(), expected, strict=True):
        assert torch.equal(one.completion_ids, other.completion_ids)
        assert torch.equal(one.completion_mask, other.completion_mask)
        assert (one.old_logps - other.old_logps).abs().max() < 1e-6
    assert 0 < len(sizes) < len(each)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("family", QWEN)
def test_captured_logps_equal_recomputed_ones(family, temperature):
    policy = ending_policy(family)
    prompts = policy.embed(batch_for(policy))
    rollout = sample(policy, prompts, GROUP, NUM_TOKENS, temperature, torch.Generator().manual_seed(0))
    logps = policy.logps(prompts, rollout.completion_ids, rollout.completion_mask, temperature).logps
    assert (logps - rollout.old_logps).abs().max() < 1e-5  # they are captured in float32
    assert rollout.old_logps[~rollout.completion_mask].abs().max() == 0
    assert (rollout.completion_ids[~rollout.completion_mask] == policy.pad_id).all()


def test_compaction_by_hand():
    cache = KVCache.__new__(KVCache)
    cache.num_prompts, cache.num_places, cache.absent = 3, 4, None
    cache.lengths = torch.tensor([7, 8, 9])
    tensor = torch.arange(12.0).view(12, 1, 1, 1)
    cache.rows, cache.prompts = {0: (tensor, tensor)}, {0: (torch.arange(3.0), torch.arange(3.0))}
    going = torch.tensor([1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1]).bool()
    assert cache.compact(going) is None  # one row needs all four places, and every prompt has one
    going = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0]).bool()
    keep = cache.compact(going)
    assert keep.tolist() == [3, 0, 9, 10]  # two prompts with two places, one of them filled by a row that has ended
    assert (cache.num_prompts, cache.num_places) == (2, 2)
    assert cache.rows[0][0].flatten().tolist() == [3, 0, 9, 10]
    assert cache.prompts[0][1].tolist() == [0, 2]


def weights_of(policy):
    return {name: value.clone() for name, value in policy.base.state_dict().items()}


def test_merged_weights_write_the_same_and_come_back_bit_for_bit():
    policy = ending_policy(dtype=torch.float32)
    before, prompts = weights_of(policy), policy.embed(batch_for(policy))
    ids = torch.randint(10, 300, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 5, dtype=torch.bool)
    expected = policy.logps(prompts, ids, mask).logps
    with policy.merged():
        merged = weights_of(policy)
        assert torch.allclose(policy.logps(prompts, ids, mask).logps, expected, atol=1e-4)
    assert sum(not torch.equal(before[name], merged[name]) for name in before) == 3 * 7  # each linear layer
    after = weights_of(policy)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(policy.logps(prompts, ids, mask).logps, expected)


def test_weights_come_back_after_an_exception(monkeypatch):
    policy = ending_policy(dtype=torch.float32)
    before, prompts = weights_of(policy), policy.embed(batch_for(policy))

    def fail(self, going):
        raise KeyboardInterrupt

    monkeypatch.setattr(KVCache, "compact", fail)
    with pytest.raises(KeyboardInterrupt):
        sample(policy.train(), prompts, GROUP, NUM_TOKENS)
    after = weights_of(policy)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert policy.training
    assert policy.model.active_adapters == ["default"]
    assert all("lora" in name for name, p in policy.named_parameters() if p.requires_grad)
    with policy.reference():
        reference = policy.logps(prompts, torch.full((3, 1), 20), torch.ones(3, 1).bool()).logps
    assert (policy.logps(prompts, torch.full((3, 1), 20), torch.ones(3, 1).bool()).logps - reference).abs().max() > 0.1


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.bfloat16, False), (torch.float32, True)])
def test_bfloat16_is_not_merged(dtype, autocast):
    policy = ending_policy(dtype=dtype)
    before = weights_of(policy)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), policy.merged():
        inside = weights_of(policy)
    assert all(torch.equal(before[name], inside[name]) for name in before if "lora_" not in name)


def test_a_policy_without_an_adapter_has_nothing_to_merge():
    policy = family_policy("qwen2_5_vl", dtype=torch.float32)
    before = weights_of(policy)
    with policy.merged():
        assert all(torch.equal(before[name], value) for name, value in weights_of(policy).items())
