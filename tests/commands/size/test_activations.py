"""The formulas beside what autograd really keeps and what operations really allocate, on small models."""

import contextlib
import dataclasses
import itertools

import pytest
import torch

from mrg.commands.size.activations import (
    Training,
    cast_weights,
    forward_work,
    kv_cache,
    policy_pass,
    reference_pass,
    sampling_work,
    saved_by_pass,
    vision_pass,
)
from mrg.commands.size.geometry import geometry
from mrg.modules.policy.precision import hold_trained
from mrg.modules.prefix.attention import PackedPrompts, concatenated
from mrg.modules.prefix.packing import Masks
from mrg.modules.rollout.kv_cache import KVCache, prefill
from mrg.modules.rollout.sampling import sample
from tests.commands.size.measure import Live, saved_bytes
from tests.commands.size.models import build, prompts

PRECISIONS = {
    "float32": (torch.float32, False),
    "bfloat16 under autocast": (torch.bfloat16, True),
    "float32 under autocast": (torch.float32, True),
}
SHAPES = [(256, 1376, 4, 1), (384, 2016, 6, 2), (320, 1720, 5, 5)]
"""Width, the MLP's, heads of queries and of keys: ratios as in the published models."""


def training_of(precision, rank, checkpointing):
    dtype, autocast = PRECISIONS[precision]
    return Training(dtype.itemsize, autocast, rank, checkpointing)


def tokens_of(num_prompts=2, prompt=150, group_size=4, completion=33):
    return num_prompts * (prompt + group_size * (completion - 1)), num_prompts * group_size * completion


def one_pass(policy, precision, num_prompts=2, prompt=150, group_size=4, completion=33, backward=True):
    """Bytes kept, and the most at once, of a pass over two groups, under autocast as Lightning does it."""
    _, autocast = PRECISIONS[precision]
    given = prompts(policy, num_prompts, prompt)
    trained = [p for p in policy.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.randint(20, 40, (num_prompts * group_size, completion))
    mask = torch.ones_like(ids, dtype=torch.bool)
    known = [*policy.parameters(), *policy.buffers(), *(p.grad for p in trained), given.embeds, given.positions]
    live = Live([*known, ids, mask])
    counting = live if backward else contextlib.nullcontext()
    with counting, torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):
        with saved_bytes(known) as kept:
            logps = policy.logps(given, ids, mask).logps
        if backward:
            logps.sum().backward()
    return kept[0], live.peak


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_autograd_keeps(precision, rank, checkpointing):
    """Within 1 %, and what else is kept does not grow with the model: masks and indices."""
    policy = build(*SHAPES[1], rank=rank, dtype=PRECISIONS[precision][0], checkpointing=checkpointing)
    shape, training = geometry(policy.base.config), training_of(precision, rank, checkpointing)
    kept, _ = one_pass(policy, precision, backward=False)
    copies = cast_weights(shape, training)
    if checkpointing:  # made again with the layers, but for the head's
        copies = 2 * shape.vocab_size * shape.width if training.autocast and not rank else 0
    expected = saved_by_pass(shape, training, *tokens_of()) + copies
    assert kept == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("shape_of", "rank"), itertools.product(SHAPES, [4, 0]))
@pytest.mark.parametrize("precision", list(PRECISIONS)[:2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_peak_of_a_forward_and_backward_pass(shape_of, rank, precision, checkpointing):
    policy = build(*shape_of, rank=rank, dtype=PRECISIONS[precision][0], checkpointing=checkpointing)
    shape, training = geometry(policy.base.config), training_of(precision, rank, checkpointing)
    _, peak = one_pass(policy, precision)
    expected = policy_pass(shape, training, *tokens_of())
    assert 0.85 <= peak / expected <= 1.03


@pytest.mark.parametrize("completion", [5, 40])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradient_of_a_trained_head(precision, completion):
    """The vocabulary needs more memory than the layers; with many tokens, the logits need more than both."""
    policy = build(*SHAPES[0], rank=0, dtype=PRECISIONS[precision][0])
    head = policy.base.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().repeat(100, 1))
    shape, training = geometry(policy.base.config), training_of(precision, 0, False)
    shape = dataclasses.replace(shape, vocab_size=len(head.weight))
    _, peak = one_pass(policy, precision, prompt=20, completion=completion)
    expected = policy_pass(shape, training, *tokens_of(prompt=20, completion=completion))
    assert peak == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rank", [4, 0])
def test_peak_of_a_reference_pass_with_a_large_vocabulary(rank, precision):
    """Whose float32 head autocast copies."""
    policy = build(*SHAPES[1], rank=rank, dtype=PRECISIONS[precision][0])
    for module in (policy.base.lm_head, policy.base.get_input_embeddings()):
        module.weight = torch.nn.Parameter(module.weight.detach().repeat(30, 1), requires_grad=not rank)
    shape = dataclasses.replace(geometry(policy.base.config), vocab_size=len(policy.base.lm_head.weight))
    given, ids = prompts(policy, 2, 150), torch.randint(20, 40, (8, 33))
    live = Live([*policy.parameters(), *policy.buffers(), given.embeds, given.positions, ids])
    with live, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, PRECISIONS[precision][1], cache_enabled=False):
        policy.logps(given, ids, torch.ones_like(ids, dtype=torch.bool))
    assert 0.95 <= live.peak / reference_pass(shape, training_of(precision, rank, False), *tokens_of()) <= 1.05


def test_copies_of_keys_on_other_devices_are_small(monkeypatch):
    """A GPU takes PyTorch's public attention, which copies a prompt's keys for its completions: here on the CPU."""

    def attend(self, layer, query, key, value, scale, window=None):
        return concatenated(query, key, value, self.layout, Masks.of(self.layout, window, query), scale)

    policy = build(*SHAPES[0], dtype=torch.bfloat16)
    ours, _ = one_pass(policy, "bfloat16 under autocast", backward=False)
    monkeypatch.setattr(PackedPrompts, "attend", attend)
    public, _ = one_pass(policy, "bfloat16 under autocast", backward=False)
    assert ours < public < 1.2 * ours


@pytest.mark.parametrize("precision", list(PRECISIONS)[:2])
@pytest.mark.parametrize("shape_of", SHAPES)
def test_keys_and_values_of_a_rollout(precision, shape_of):
    """Those of the prompts once and of every row behind them exactly; the work of reading the prompts nearly."""
    dtype, autocast = PRECISIONS[precision]
    policy = build(*shape_of, dtype=dtype).eval()
    shape, training = geometry(policy.base.config), training_of(precision, 4, False)
    given = prompts(policy, 3, 200)
    live = Live([*policy.parameters(), *policy.buffers(), given.embeds, given.positions, given.mask])
    with torch.no_grad(), live, torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):
        cache = KVCache(prefill(policy, given)[1], group_size=2, max_new_tokens=8)
    held = [x for part in (cache.prompts, cache.rows) for pair in part.values() for x in pair]
    assert sum(x.untyped_storage().nbytes() for x in held) == kv_cache(shape, training, 3, 200, 6, 8)
    expected = kv_cache(shape, training, 3, 200, 0, 0) + forward_work(shape, training, 600)
    assert 0.85 <= live.peak / expected <= 1.05


def test_work_of_sampling():
    policy = build(64, 176, 2, 1, rank=4)
    given = prompts(policy, 2, 5)
    head, embedding = policy.base.lm_head, policy.base.get_input_embeddings()
    for module in (head, embedding):
        module.weight = torch.nn.Parameter(module.weight.repeat(30, 1), requires_grad=False)
    live = Live([*policy.parameters(), *policy.buffers(), given.embeds, given.positions, given.mask])
    with live:
        sample(policy, given, 16, 2)
    shape = dataclasses.replace(geometry(policy.base.config), vocab_size=len(head.weight))
    assert 0.9 <= live.peak / sampling_work(shape, 32) <= 1.1


@pytest.mark.parametrize("precision", list(PRECISIONS)[:2])
@pytest.mark.parametrize("trained", [False, True])
def test_work_of_the_vision_tower(precision, trained):
    dtype, autocast = PRECISIONS[precision]
    tower = {"depth": 4, "hidden_size": 256, "num_heads": 4, "intermediate_size": 684, "fullatt_block_indexes": [1, 3]}
    policy = build(64, 176, 2, 1, dtype=dtype, vision=tower)
    for parameter in policy.base.model.visual.parameters():
        parameter.requires_grad_(trained)
    hold_trained(policy)
    grid, pixels = torch.tensor([[1, 20, 24]] * 2), torch.randn(960, 1176)
    live = Live([*policy.parameters(), *policy.buffers(), grid, pixels])
    with live, torch.set_grad_enabled(trained), torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):
        policy.base.model.get_image_features(pixels, grid, return_dict=True)
    expected = vision_pass(geometry(policy.base.config), training_of(precision, 4, False), 960, trained)
    assert 0.85 <= live.peak / expected <= 1.1
