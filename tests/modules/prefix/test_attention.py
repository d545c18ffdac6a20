"""Both attentions over a packed row, and that of a decoding step, against a dense masked one."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.bias import CausalBias
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import mrg.modules.prefix.attention
import mrg.modules.rollout.kv_cache
from mrg.modules.prefix.attention import PackedPrompts, _Merged, attention, concatenated, hidden_states
from mrg.modules.prefix.packing import Masks, _layout
from mrg.modules.rollout.kv_cache import KVCache, by_products
from mrg.modules.rollout.static_cache import StaticAttention, StaticDecoder
from tests.commands.size.models import prompts as random_prompts
from tests.families import QWEN, family_policy

CASES = {
    "one prompt, equal completions": ([5], [[3, 3]]),
    "unequal prompts and completions": ([4, 7, 2], [[3, 1, 2], [5, 5, 1], [2, 4, 6]]),
    "some completions are not read": ([3, 5], [[0, 4, 0], [2, 0, 0]]),
    "a prompt none of whose completions is read": ([4, 3, 6], [[2, 3], [0, 0], [1, 1]]),
    "no completions": ([4, 6], [[], []]),
    "a prompt of one token": ([1, 3], [[4, 2], [1, 1]]),
}
PACKED = {
    "merged": lambda q, k, v, layout, scale: _Merged.apply(q, k, v, layout, Masks.of(layout, None, q), scale),
    "concatenated": lambda q, k, v, layout, scale: concatenated(q, k, v, layout, Masks.of(layout, None, q), scale),
}


def packed(lengths, groups, num_heads=4, num_keys=2, width=8, dtype=torch.float64, seed=0):
    """A layout, and random query, key and value of its row."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths) + sum(map(sum, groups))
    tensors = [
        torch.randn(1, heads, total, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (num_heads, num_keys, num_keys)
    ]
    return _layout(lengths, groups, torch.device("cpu")), tensors


def seen(lengths, groups):
    """(L, L) bool, who sees whom, token by token."""
    owner = [(b, None) for b, length in enumerate(lengths) for _ in range(length)]
    owner += [(b, n) for b, group in enumerate(groups) for n, length in enumerate(group) for _ in range(length)]
    return torch.tensor(
        [
            [j <= i and other[0] == own[0] and other[1] in (None, own[1]) for j, other in enumerate(owner)]
            for i, own in enumerate(owner)
        ]
    )


def dense(query, key, value, mask, scale):
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    products = (query @ key.transpose(-1, -2)) * scale
    return products.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def assert_equal_to_dense(name, num_keys, case):
    """Outputs and gradients."""
    lengths, groups = CASES[case]
    layout, tensors = packed(lengths, groups, num_keys=num_keys)
    expected = dense(*tensors, seen(lengths, groups), 0.3)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weights).sum(), tensors)
    output = PACKED[name](*tensors, layout, 0.3)
    assert torch.allclose(output, expected, atol=1e-12, rtol=0)
    for got, want in zip(torch.autograd.grad((output * weights).sum(), tensors), wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", list(PACKED))
@pytest.mark.parametrize("num_keys", [4, 2, 1])
@pytest.mark.parametrize("case", list(CASES))
def test_outputs_and_gradients_equal_dense_masked_attention(name, num_keys, case):
    assert_equal_to_dense(name, num_keys, case)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("images", [False, True])
def test_windows_and_images_equal_dense_masked_attention(window, images):
    """Prompts of 7 and 4 tokens, of which 1 to 3 and 2 to 3 are an image; up to 4 tokens of completions are read."""
    lengths, groups = [7, 4], [[4, 0, 2], [1, 3, 3]]
    layout, tensors = packed(lengths, groups)
    mask = seen(lengths, groups)
    place = torch.cat([torch.arange(7), torch.arange(4)] + [
        torch.arange(length) + start for start, group in zip(lengths, groups, strict=True) for length in group
    ])  # fmt: skip
    if images:
        blocks = [torch.tensor([-1, 0, 0, 0, -1, -1, -1]), torch.tensor([-1, -1, 0, 0])]
        layout = dataclasses.replace(layout, blocks=blocks)
        mask[1:4, 1:4] = mask[9:11, 9:11] = True
    if window is not None:
        mask = mask & (place > place[:, None] - window)
    expected = dense(*tensors, mask, 0.3)
    wanted = torch.autograd.grad(expected.square().sum(), tensors)
    masks = Masks.of(layout, window, tensors[0])
    for output in (_Merged.apply(*tensors, layout, masks, 0.3), concatenated(*tensors, layout, masks, 0.3)):
        assert torch.allclose(output, expected, atol=1e-12, rtol=0)
        for got, want in zip(torch.autograd.grad(output.square().sum(), tensors), wanted, strict=True):
            assert torch.allclose(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_keys", [2, 1])
@pytest.mark.parametrize("case", list(CASES))
def test_kernels_that_need_as_many_heads_of_keys(monkeypatch, num_keys, case):
    """Those of torch 2.8."""
    monkeypatch.setattr(mrg.modules.prefix.attention, "FEWER_KEY_HEADS", False)
    assert_equal_to_dense("merged", num_keys, case)


@pytest.mark.parametrize("name", list(PACKED))
def test_gradients_by_finite_differences(name):
    layout, tensors = packed([2, 3], [[2, 1], [0, 2]], num_heads=2, num_keys=1, width=2)
    assert torch.autograd.gradcheck(lambda *x: PACKED[name](*x, layout, 0.7), tensors, fast_mode=True)


@pytest.mark.parametrize("name", list(PACKED))
def test_bfloat16_is_as_near_as_its_precision(name):
    lengths, groups = [30, 45], [[20, 7, 13], [9, 1, 25]]
    layout, tensors = packed(lengths, groups, width=16, dtype=torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    expected, output = dense(*exact, seen(lengths, groups), 0.25), PACKED[name](*tensors, layout, 0.25)
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().max() < 0.02
    got, wanted = (torch.autograd.grad(x.double().square().sum(), y) for x, y in ((output, tensors), (expected, exact)))
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("name", list(PACKED))
def test_layout_of_the_memory_does_not_matter(name):
    """transformers hands over transposed views, and autograd an expanded gradient."""
    layout, tensors = packed(*CASES["unequal prompts and completions"])
    views = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in tensors]
    one, other = (PACKED[name](*x, layout, 0.3) for x in (tensors, views))
    assert torch.equal(one, other)
    grads = (torch.autograd.grad(x.sum(), y) for x, y in ((one, tensors), (other, views)))
    assert all(torch.allclose(a, b, atol=1e-13) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("by", ["flash", "products"])
@pytest.mark.parametrize("lengths", [[4, 4], [3, 6, 1]])
@pytest.mark.parametrize("num_keys", [4, 2])
def test_decoding_step_by_step_equals_dense_attention_over_the_whole(monkeypatch, by, lengths, num_keys):
    """Three rows of four tokens behind each prompt, read one at a time."""
    if by == "products":  # as on a GPU, in float32
        monkeypatch.setattr(mrg.modules.rollout.kv_cache, "_attend", by_products)
    groups = [[4, 4, 4]] * len(lengths)
    _, tensors = packed(lengths, groups, num_keys=num_keys)
    query, key, value = (x.detach() for x in tensors)
    expected = dense(query, key, value, seen(lengths, groups), 0.3)
    prompts = sum(lengths)
    reading = PackedPrompts(_layout(lengths, [[]] * len(lengths), torch.device("cpu")), keep=True)
    reading.attend(0, *(x[:, :, :prompts] for x in (query, key, value)), 0.3)
    cache = KVCache(reading, 3, 4)
    rows = [x[0, :, prompts:].unflatten(1, (-1, 4)).transpose(0, 1) for x in (query, key, value, expected)]
    for step in range(4):
        q, k, v, want = (x[:, :, step : step + 1] for x in rows)
        output = cache.at(step).attend(0, q, k, v, 0.3)
        assert torch.allclose(output, want, atol=1e-12, rtol=0)


DECODED = ["flash", "products", "fixed shapes"]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("by", DECODED)
@pytest.mark.parametrize(("size", "largest"), [(0.0, 2), (3.0, 15), (7.0, 60)])
def test_decoding_in_bfloat16_does_not_round_large_scores(monkeypatch, by, size, largest, autocast):
    """Biases on queries and keys, as some models have them, make large scores; the error must not grow with them."""
    if by == "products":
        monkeypatch.setattr(mrg.modules.rollout.kv_cache, "_attend", by_products)
    generator = torch.Generator().manual_seed(0)
    lengths, rows, tokens, width = [200, 150], 2, 5, 64
    groups, total = [[tokens] * rows] * 2, sum(lengths) + 2 * rows * tokens
    layout = _layout(lengths, [[]] * 2, torch.device("cpu"))
    query, key, value = (
        torch.randn(1, heads, total, width, generator=generator)
        + shift * torch.randn(1, heads, 1, width, generator=generator)
        for heads, shift in ((4, size), (2, size), (2, 0.0))
    )
    low = [x.bfloat16() for x in (query, key, value)]
    exact = [x.double() for x in low]
    scale = width**-0.5
    products = exact[0] @ exact[1].repeat_interleave(2, 1).transpose(-1, -2) * scale
    assert largest < products.abs().max() < 4 * largest + 4
    expected = dense(*exact, seen(lengths, groups), scale)[0, :, sum(lengths) :].unflatten(1, (-1, tokens))
    reading = PackedPrompts(layout, keep=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        reading.attend(0, *(x[:, :, : sum(lengths)] for x in low), scale)
        fixed = by == "fixed shapes"
        state = StaticDecoder().start(None, reading, rows, tokens) if fixed else KVCache(reading, rows, tokens)
        outputs = []
        for step in range(tokens):
            q, k, v = (
                x[0, :, sum(lengths) :].unflatten(1, (-1, tokens)).transpose(0, 1)[:, :, step : step + 1] for x in low
            )
            attend = StaticAttention(state.view, torch.tensor([step])) if fixed else state.at(step)
            outputs.append(attend.attend(0, q, k, v, scale))
    output = torch.cat(outputs, 2).transpose(0, 1)
    assert output.dtype == torch.bfloat16
    assert (output - expected).norm() < 0.004 * expected.norm()


class Waits(TorchDispatchMode):
    """Counts what a GPU has to wait for, and what its backward pass adds up at places that may repeat."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name == "aten::index":
            self.count += any(x is not None and x.dtype == torch.bool for x in args[1])
        self.count += name in ("aten::nonzero", "aten::masked_select", "aten::item", "aten::_local_scalar_dense")
        self.count += "index_put" in name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("name", list(PACKED))
def test_a_gpu_does_not_wait_within_layers(monkeypatch, name, window):
    def bias(cls, *args):  # a mask without numbers, that the mode would take for a tensor
        with _disable_current_modes():
            return torch.Tensor.__new__(cls)

    monkeypatch.setattr(CausalBias, "__new__", staticmethod(bias))
    layout, tensors = packed([5, 4], [[3, 1, 2], [0, 5, 2]])
    masks = Masks.of(layout, window, tensors[0])
    with Waits() as waits:
        if name == "merged":
            output = _Merged.apply(*tensors, layout, masks, 0.3)
        else:
            output = concatenated(*tensors, layout, masks, 0.3)
        output.sum().backward()
    assert waits.count == 0
    assert all(x.grad.abs().sum() > 0 for x in tensors)


@pytest.mark.parametrize("family", QWEN)
def test_more_layers_make_no_more_waits(family):
    """Of a whole pass; what stands before and after the layers may wait once."""
    counts = []
    for num_layers in (1, 3):
        policy = family_policy(family, dtype=torch.float32, num_hidden_layers=num_layers)
        given = random_prompts(policy, 2, 6)
        mask = torch.arange(4) < torch.tensor([4, 2, 1, 3])[:, None]
        with Waits() as waits:
            policy.logps(given, torch.full_like(mask, 20, dtype=torch.long), mask).logps.sum().backward()
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


def test_layers_with_one_window_share_their_masks(monkeypatch):
    layout, tensors = packed([5, 4], [[3, 1], [0, 2]])
    prompts = PackedPrompts(layout)
    made = []
    of = Masks.of
    monkeypatch.setattr(Masks, "of", lambda *args: made.append(args[1]) or of(*args))
    for window in (None, 8, None, 8):
        prompts.attend(0, *tensors, 0.3, window)
    assert made == [None, 8]
    assert prompts.kept == {}


def test_attention_of_a_layer_by_hand():
    """Heads and tokens change places; the scale is that of the layer, or one over the root of the width."""
    given = []

    class Recorder:
        def attend(self, *args):
            given.append(args)
            return args[1]

    query, key, value = (torch.randn(1, 2, 3, 16) for _ in range(3))
    layer = SimpleNamespace(layer_idx=7)
    output, weights = attention(layer, query, key, value, None, shared=Recorder(), sliding_window=5)
    assert torch.equal(output, query.transpose(1, 2))
    assert weights is None
    attention(layer, query, key, value, None, 0.5, shared=Recorder())
    assert [(args[0], args[4], args[5]) for args in given] == [(7, 0.25, 5), (7, 0.5, None)]
    with torch.autocast("cpu", torch.bfloat16):
        attention(layer, query, key, value, None, shared=Recorder())
    assert {x.dtype for x in given[-1][1:4]} == {torch.bfloat16}


def test_what_a_language_model_is_given():
    given = []

    def language_model(**kwargs):
        given.append(kwargs)
        return SimpleNamespace(last_hidden_state=kwargs["inputs_embeds"] + 1)

    embeds, positions, mask = torch.zeros(1, 3, 4), torch.arange(3)[None], torch.ones(1, 3)
    plain = {"attention_mask": None, "position_ids": positions, "inputs_embeds": embeds, "use_cache": False}
    assert torch.equal(hidden_states(language_model, embeds, positions), embeds + 1)
    assert given[-1] == plain
    visual, layers, shared = mask.bool(), (torch.zeros(3, 4),), object()
    hidden_states(language_model, embeds, positions, mask, shared, visual, layers)
    images = {"visual_pos_masks": visual, "deepstack_visual_embeds": list(layers)}
    assert given[-1] == {**plain, "attention_mask": mask, "shared": shared, **images}
