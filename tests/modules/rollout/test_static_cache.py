"""Decoding at a few fixed shapes writes what decoding at shrinking ones writes."""

import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.prefix.attention import PackedPrompts
from mrg.modules.prefix.packing import Layout
from mrg.modules.rollout import static_cache
from mrg.modules.rollout.kv_cache import KVCache, prefill
from mrg.modules.rollout.sampling import sample
from mrg.modules.rollout.static_cache import (
    CacheMemory,
    CacheView,
    Size,
    StaticDecoder,
    StaticKVCache,
    sizes,
    skipped_graphs,
)
from tests.families import QWEN, unequal_studies
from tests.family_checkpoints import BUILDERS, WINDOW, save_family
from tests.modules.rollout.test_kv_cache import GROUP, NUM_TOKENS, ending_policy


def prompts_for(policy, studies=slice(None)):
    batch = StudyCollator(policy.processor, "Report:", use_indication=True)(unequal_studies()[studies])
    with torch.no_grad():
        return policy.embed(batch)


def write(policy, prompts, decoder=None, group_size=GROUP, temperature=0.7, seed=0, num_tokens=NUM_TOKENS):
    generator = torch.Generator().manual_seed(seed)
    return sample(policy, prompts, group_size, num_tokens, temperature, generator, decoder)


def assert_same(rollout, expected, tolerance=1e-6):
    assert torch.equal(rollout.completion_ids, expected.completion_ids)
    assert torch.equal(rollout.completion_mask, expected.completion_mask)
    assert torch.equal(rollout.truncated, expected.truncated)
    assert (rollout.old_logps - expected.old_logps).abs().max() <= tolerance  # captured in float32
    assert rollout.texts == expected.texts


@pytest.fixture
def drops(monkeypatch):
    """Sizes at which rollouts went on."""
    seen = []
    compact = StaticKVCache.compact

    def watched(self, going):
        keep = compact(self, going)
        if keep is not None:
            seen.append((self.view.num_prompts, self.view.num_places))
            assert len(keep) == self.view.num_prompts * self.view.num_places
        return keep

    monkeypatch.setattr(StaticKVCache, "compact", watched)
    return seen


@pytest.mark.parametrize("family", QWEN)
def test_tokens_and_logps_are_those_of_shrinking_shapes(family, drops):
    policy, decoder = ending_policy(family), StaticDecoder()
    prompts = prompts_for(policy)
    for group_size, temperature in ((GROUP, 0.7), (GROUP, 1.3), (1, 0.0), (2, 0.0)):
        for seed in range(4 if temperature else 1):
            settings = {"group_size": group_size, "temperature": temperature, "seed": seed}
            assert_same(write(policy, prompts, decoder, **settings), write(policy, prompts, **settings))
    assert {(3, 2), (3, 1)} <= set(drops)  # of three prompts with four places


def test_many_sampled_groups_of_one(drops):
    """Prompts are given up where each has one place, and their order is kept."""
    policy, decoder = ending_policy(), StaticDecoder()
    prompts = prompts_for(policy)
    lengths = set()
    for seed in range(12):
        rollout = write(policy, prompts, decoder, 1, 1.0, seed)
        assert_same(rollout, write(policy, prompts, None, 1, 1.0, seed))
        lengths.add(tuple(rollout.completion_mask.sum(1).tolist()))
    assert len(lengths) > 8
    assert set(drops) == {(2, 1), (1, 1)}


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_families_and_windows(kind, studies, tmp_path, drops):
    """Also where the prompt gets out of sight; masks, not slices, say so."""
    torch.manual_seed(1)
    folder = save_family(kind, tmp_path, [study.report for study in studies])
    policy = load_policy(folder, LoRA(4)).double().eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
        prompts = policy.embed(StudyCollator(policy.processor, "Findings:")(studies[:3]))
    decoder = StaticDecoder()
    for group_size, temperature in ((1, 0.0), (3, 1.0)):
        settings = {"group_size": group_size, "temperature": temperature, "num_tokens": WINDOW + 8}
        rollout = write(policy, prompts, decoder, **settings)
        assert_same(rollout, write(policy, prompts, **settings))
        if policy.family.window:
            assert policy.family.window == WINDOW
            assert rollout.completion_mask.sum(1).max() > WINDOW


def test_a_smaller_batch_and_a_longer_prompt():
    """Fewer prompts fill a part of the tensors; longer prompts make them grow, shorter ones leave them."""
    policy, decoder = ending_policy(), StaticDecoder()
    everything, one, two = (prompts_for(policy, s) for s in (slice(None), slice(0, 1), slice(1, 3)))
    assert one.mask.shape[1] < two.mask.shape[1]
    made = []
    for prompts in (one, two, everything, one, two, everything):
        assert_same(write(policy, prompts, decoder), write(policy, prompts))
        memory = decoder.memories[(GROUP, NUM_TOKENS)]
        made.append((memory.size.num_prompts, memory.longest))
    assert made == [(1, 64), (2, 128), (3, 128), (3, 128), (3, 128), (3, 128)]


def test_tensors_stay_where_they_are():
    policy, decoder = ending_policy(), StaticDecoder()
    prompts = prompts_for(policy)
    write(policy, prompts, decoder)
    memory = decoder.memories[(GROUP, NUM_TOKENS)]
    before = {size: tensors_of(memory.view(size)) for size in sizes(3, GROUP)}
    for seed in range(3):
        write(policy, prompts, decoder, seed=seed)
    assert decoder.memories[(GROUP, NUM_TOKENS)] is memory
    starts = set()
    for size, tensors in before.items():
        assert all(one is other for one, other in zip(tensors_of(memory.view(size)), tensors, strict=True))
        starts.add(tuple(x.data_ptr() for x in tensors))
    assert len(before) == 3
    assert len(starts) == 1  # of all sizes


def tensors_of(view):
    pairs = [*view.prompts.values(), *view.rows.values()]
    return [view.lengths, *(x for pair in pairs for x in pair)]


def test_what_an_earlier_rollout_left_does_not_count():
    policy, decoder = ending_policy(), StaticDecoder()
    prompts = prompts_for(policy, slice(0, 1))
    write(policy, prompts_for(policy), decoder)
    for tensor in tensors_of(decoder.memories[(GROUP, NUM_TOKENS)].view(Size(3, GROUP)))[1:]:
        tensor.fill_(torch.nan)
    assert_same(write(policy, prompts, decoder), write(policy, prompts))


@pytest.mark.parametrize("interval", [2, 3, 4, 100])
def test_looking_rarely_for_rows_that_have_ended_changes_nothing(interval, monkeypatch):
    policy, decoder = ending_policy(), StaticDecoder()
    prompts = prompts_for(policy)
    expected = [write(policy, prompts, group_size=2, temperature=t) for t in (1.0, 0.0)]
    start = StaticKVCache.__init__

    def rarely(self, *args):
        start(self, *args)
        self.interval = interval

    monkeypatch.setattr(StaticKVCache, "__init__", rarely)
    for temperature, other in zip((1.0, 0.0), expected, strict=True):
        assert_same(write(policy, prompts, decoder, group_size=2, temperature=temperature), other)


def test_evaluation_in_inference_mode_and_training_share_the_tensors():
    policy, decoder = ending_policy(), StaticDecoder()
    with torch.inference_mode():
        prompts = prompts_for(policy)
        expected = write(policy, prompts)
        assert_same(write(policy, prompts, decoder), expected)
    assert not any(x.is_inference() for x in tensors_of(decoder.memories[(GROUP, NUM_TOKENS)].view(Size(3, GROUP))))
    prompts = prompts_for(policy)
    assert_same(write(policy, prompts, decoder), expected)
    with torch.enable_grad():
        rollout = write(policy, prompts, decoder)
    assert_same(rollout, expected)
    assert not rollout.old_logps.requires_grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.3)])
def test_other_precisions(dtype, tolerance):
    """Logits of a step; tokens may differ where two are almost as likely."""
    policy = ending_policy(dtype=dtype)
    prompts = prompts_for(policy)
    position = prompts.next_position.repeat_interleave(2).expand(3, -1)
    with torch.no_grad():
        shrinking = KVCache(prefill(policy, prompts)[1], 2, 4)
        fixed = StaticDecoder().start(policy, prefill(policy, prompts)[1], 2, 4)
        results = [
            torch.stack([state.read(policy, torch.arange(6) + 20 + step, position, step) for step in range(3)])
            for state in (shrinking, fixed)
        ]
    assert results[0].dtype == dtype
    assert (results[0] - results[1]).abs().max() < tolerance * results[0].abs().max()


def test_sizes_by_hand():
    assert sizes(4, 8) == [(4, 8), (4, 4), (4, 2)]
    assert sizes(5, 3) == [(5, 3), (5, 2), (5, 1)]
    assert sizes(6, 1) == [(6, 1), (3, 1), (2, 1)]
    assert sizes(4, 2) == [(4, 2), (4, 1), (2, 1)]
    assert sizes(1, 1) == [(1, 1)]


def test_compaction_by_hand():
    layout = Layout([(0, 2)], [(2, 2)], [], [], [])
    reading = PackedPrompts(layout, keep=True)
    reading.kept[0] = (torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1))
    memory = CacheMemory(reading, Size(4, 1), 2, 3)
    cache = StaticKVCache.__new__(StaticKVCache)
    cache.memory, cache.sizes = memory, sizes(4, 1)
    cache.view = memory.view(Size(4, 1))
    cache.view.rows[0][0].copy_(torch.arange(12.0).view(4, 1, 3, 1))
    cache.view.prompts[0][1].copy_(torch.arange(8.0).view(4, 1, 2, 1))
    cache.view.lengths.copy_(torch.tensor([1, 2, 0, 2]))
    assert cache.compact(torch.tensor([True, False, True, True])) is None
    keep = cache.compact(torch.tensor([False, False, False, True]))
    assert keep.tolist() == [3]
    assert isinstance(cache.view, CacheView)
    assert (cache.view.num_prompts, cache.view.num_places) == (1, 1)
    assert cache.view.rows[0][0].flatten().tolist() == [9, 10, 11]
    assert cache.view.prompts[0][1].flatten().tolist() == [6, 7]
    assert cache.view.lengths.tolist() == [2]


def test_rows_by_hand():
    """Two of three prompts with two places: the places of the third hold no row."""
    policy, decoder = ending_policy(), StaticDecoder()
    write(policy, prompts_for(policy), decoder, group_size=2)
    with torch.no_grad():
        state = decoder.start(policy, prefill(policy, prompts_for(policy, slice(0, 2)))[1], 2, NUM_TOKENS)
    assert state.initial_rows.tolist() == [0, 1, 2, 3, 4, 4]
    assert state.view.lengths[2] == 0
    assert state.interval == 1
    assert static_cache.CUDA_INTERVAL > 1


def test_the_private_parts_of_torch_are_there():
    dynamo = torch._dynamo
    assert callable(getattr(dynamo, "mark_static_address", None)), (
        "torch._dynamo.mark_static_address is gone: CUDA graphs would copy the KV cache in every step"
    )
    assert hasattr(dynamo.utils, "counters"), (
        "torch._dynamo.utils.counters is gone: compiled decoding could not tell whether CUDA graphs were skipped"
    )
    assert skipped_graphs() >= 0
