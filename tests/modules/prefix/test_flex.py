"""FlexAttention over a packed row: its forward pass on the CPU, where it has no backward pass."""

import functools
import logging

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy.families import FAMILIES
from mrg.modules.policy.lora import LoRA
from mrg.modules.prefix import flex as module
from mrg.modules.prefix.attention import concatenated
from mrg.modules.prefix.flex import MULTIPLE, Flex, FlexPrompts, block_mask, flex, flex_state, largest_error, row_mask
from mrg.modules.prefix.packing import Masks
from tests.families import QWEN, family_policy, unequal_studies
from tests.family_checkpoints import BUILDERS
from tests.modules.policy.test_more_families import completions, exact
from tests.modules.prefix.test_attention import CASES, packed, seen

CPU = torch.device("cpu")


LEAST = 128  # tokens that FlexAttention takes in blocks


def test_rows_are_padded_to_blocks():
    assert MULTIPLE % LEAST == 0
    layout, _ = packed([100, 29], [[], []])
    assert block_mask(layout, None, 129, CPU).seq_lengths == (2 * LEAST, 2 * LEAST)
    assert block_mask(packed([LEAST], [[]])[0], None, LEAST, CPU).seq_lengths == (LEAST, LEAST)


def test_the_mask_is_on_the_device_of_the_row():
    assert block_mask(packed([4], [[2]])[0], None, 6, torch.device("meta")).kv_num_blocks.device.type == "meta"


@pytest.fixture(autouse=True)
def short_rows(monkeypatch):
    monkeypatch.setattr(module, "MULTIPLE", LEAST)


def dense_mask(layout, window, size):
    index = torch.arange(size)
    return row_mask(layout, window, size, CPU)(None, None, index[:, None], index[None])


@pytest.mark.parametrize("case", list(CASES))
def test_who_attends_to_whom_token_by_token_and_padding_to_itself(case):
    lengths, groups = CASES[case]
    layout, (query, _, _) = packed(lengths, groups)
    total = query.shape[2]
    mask = dense_mask(layout, None, total + 3)
    assert torch.equal(mask[:total, :total], seen(lengths, groups))
    assert not mask[total:, :total].any()
    assert not mask[:total, total:].any()
    assert torch.equal(mask[total:, total:], torch.ones(3, 3, dtype=torch.bool).tril())


def test_windows_and_images_by_hand():
    """A prompt of 4 tokens, of which 1 and 2 are an image, and a completion of two tokens; a window of 3."""
    layout, _ = packed([4], [[2]])
    layout = module.Layout(
        layout.prompts, layout.completions, layout.slots, layout.real, layout.tokens, [torch.tensor([-1, 0, 0, -1])]
    )
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],  # the later token of its image
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    assert dense_mask(layout, 3, 6).int().tolist() == expected


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("num_keys", [4, 2])
@pytest.mark.parametrize("case", list(CASES))
def test_output_equals_that_of_concatenated(case, num_keys, window):
    layout, tensors = packed(*CASES[case], num_keys=num_keys)
    masks = Masks.of(layout, window, tensors[0])
    mask = block_mask(layout, window, tensors[0].shape[2], CPU)
    error = largest_error(
        tuple(tensors),
        lambda q, k, v: flex(q, k, v, mask, 0.3),
        lambda q, k, v: concatenated(q, k, v, layout, masks, 0.3),
        backward=False,
    )
    assert error < 1e-12


@pytest.mark.parametrize("kind", [*QWEN, *sorted(BUILDERS)])
def test_log_probabilities_of_every_family(kind, checkpoints):
    """By the merged attention of CPUs, by `concatenated` with its gradients, and by FlexAttention."""
    assert {kind.partition("-")[0] for kind in (*QWEN, *BUILDERS)} == set(FAMILIES)
    policy = family_policy(kind, LoRA(4)).eval() if kind in QWEN else exact(checkpoints(kind))
    batch = StudyCollator(policy.processor, "Findings:")(unequal_studies())
    batch.pixel_values = batch.pixel_values.double()
    rows = 2 * len(batch)
    ids, mask = completions(policy, rows, torch.arange(rows) % 7 + 1)
    prompts = policy.embed(batch)
    weights = torch.linspace(-1, 1, mask.sum().item(), dtype=torch.float64)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]

    def by(state):
        policy.flex = state
        logps = policy.logps(prompts, ids, mask).logps[mask]
        return logps, torch.autograd.grad((logps * weights).sum(), trained)

    merged, expected = by(None)
    refused = Flex()
    refused.works = lambda *args: False  # as on a CPU, where it has no gradients since PyTorch 2.9
    copied, found = by(refused)  # by `concatenated`
    assert (copied - merged).abs().max() < 1e-9
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    policy.flex.works = lambda *args: True
    with torch.no_grad():
        assert (policy.logps(prompts, ids, mask).logps[mask] - copied).abs().max() < 1e-9
    assert merged.abs().max() > 0.1
    assert max(grad.abs().max() for grad in expected) > 1e-3


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output):
        return output.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("no backward pass")


def test_the_first_use_is_checked_and_what_differs_is_not_used(caplog, monkeypatch):
    layout, tensors = packed(*CASES["unequal prompts and completions"])
    masks = Masks.of(layout, None, tensors[0])
    expected = concatenated(*tensors, layout, masks, 0.3)
    # Without a backward pass, which not all releases of PyTorch have on a CPU, the check fails; the result is right.
    forward = module.flex
    monkeypatch.setattr(module, "flex", lambda *tensors: NoBackward.apply(forward(*tensors)))
    prompts = FlexPrompts(layout, state := Flex())
    with caplog.at_level(logging.WARNING, "mrg"):
        torch.testing.assert_close(prompts.attend(0, *tensors, 0.3), expected)
        torch.testing.assert_close(prompts.attend(1, *tensors, 0.3), expected)
    assert state.agrees == {(None, torch.float64): False}
    assert caplog.text.count("FlexAttention is not used, but attention over copied keys: ") == 1

    caplog.clear()
    monkeypatch.setattr(
        module, "flex", lambda q, k, v, mask, scale, window: 1.01 * concatenated(q, k, v, layout, masks, scale)
    )
    with caplog.at_level(logging.WARNING, "mrg"):
        torch.testing.assert_close(FlexPrompts(layout, Flex()).attend(0, *tensors, 0.3), expected)
    assert "it differs by 1 %" in caplog.text


def test_the_check_does_not_disturb_a_layer_that_is_recomputed(caplog, monkeypatch):
    """The check runs in the first forward pass alone, so that nothing that it computes may be saved there."""
    layout, tensors = packed(*CASES["unequal prompts and completions"])
    masks = Masks.of(layout, None, tensors[0])
    expected = torch.autograd.grad(concatenated(*tensors, layout, masks, 0.3).square().sum(), tensors)
    monkeypatch.setattr(
        module, "flex", lambda q, k, v, mask, scale, window: concatenated(q, k, v, layout, masks, scale)
    )
    prompts = FlexPrompts(layout, state := Flex())
    output = checkpoint(lambda *x: prompts.attend(0, *x, 0.3), *tensors, use_reentrant=False)
    found = torch.autograd.grad(output.square().sum(), tensors)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert state.agrees == {(None, torch.float64): True}
    assert not caplog.text


def test_an_error_in_one_gradient_alone_is_found():
    layout, tensors = packed(*CASES["one prompt, equal completions"])
    masks = Masks.of(layout, None, tensors[0])

    class WrongKey(torch.autograd.Function):
        @staticmethod
        def forward(ctx, key):
            return key.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    error = largest_error(
        tuple(tensors),
        lambda q, k, v: concatenated(q, WrongKey.apply(k), v, layout, masks, 0.3),
        lambda q, k, v: concatenated(q, k, v, layout, masks, 0.3),
    )
    assert error == pytest.approx(1)
    broken = largest_error((tensors[0],), lambda q: q * torch.nan, lambda q: q, backward=False)
    assert broken != broken


def test_a_gradient_that_is_not_a_number_is_the_largest_error():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.nan

    x = torch.randn(2, 3, dtype=torch.float64)
    error = largest_error((x, x), lambda a, b: a + Broken.apply(b), lambda a, b: a + b)
    assert error != error
    assert largest_error((x,), lambda a: 1.5 * a, lambda a: a) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("dtype", "fits", "differs"),
    [
        (torch.float64, 0.95e-6, 1.05e-6),
        (torch.float32, 0.95e-3, 1.05e-3),
        (torch.bfloat16, 0.02, 0.05),
        (torch.float16, 0.0095, 0.0115),
    ],
)
def test_how_far_it_may_differ(dtype, fits, differs):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    for error, agrees in ((fits, True), (differs, False)):
        assert Flex().works(None, (x,), lambda a, e=error: a * (1 + e), lambda a: a.clone()) is agrees


def test_every_window_has_compiled_kernels_of_its_own(monkeypatch):
    """With one code object for all windows, PyTorch would keep the first two kernels, and run others uncompiled."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    uncompiled = module._kernel
    module._kernel.cache_clear()
    monkeypatch.setattr(module, "_kernel", lambda compiled, window: uncompiled(True, window))
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2):
        for window in (None, 9):
            for length in (100, 200, 300):  # the first, another, any
                layout, tensors = packed([length], [[4, 8]])
                mask, masks = block_mask(layout, window, length + 12, CPU), Masks.of(layout, window, tensors[0])
                found = flex(*tensors, mask, 0.3, window)
                torch.testing.assert_close(found, concatenated(*tensors, layout, masks, 0.3), rtol=0, atol=1e-12)
    uncompiled.cache_clear()
    assert len(graphs) == 4
    assert uncompiled(False, None) is uncompiled(False, 9)  # which is not compiled


def test_the_setting():
    assert flex_state("auto", CPU) is None
    assert flex_state("concatenated", torch.device("cuda")) is None
    assert isinstance(flex_state("flex", torch.device("cuda", 1)), Flex)
    with pytest.raises(ValueError, match="requires a CUDA GPU, but the device is cpu"):
        flex_state("flex", CPU)
    with pytest.raises(ValueError, match="to be 'auto', 'flex' or 'concatenated', but got 'fast'"):
        flex_state("fast", CPU)
