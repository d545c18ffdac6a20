import ast
import inspect
import math
import textwrap
import types

import pytest
import torch

from mrg.modules.rl.correction import correction_weights, off_policy_mask, token_weights
from mrg.modules.rl.loss import grpo_loss

P = torch.log(torch.tensor([[0.5, 0.9, 0.1, 0.3]]))
Q = torch.log(torch.tensor([[0.25, 0.1, 0.9, 0.3]]))
MASK = torch.tensor([[True, True, True, True]])


@pytest.mark.parametrize(
    ("correction", "weights", "beyond"),
    [
        ("truncate", [2, 3, 1 / 9, 1], [0, 1, 0, 0]),
        ("mask", [2, 0, 0, 1], [0, 1, 1, 0]),
        ("none", [1, 1, 1, 1], [0, 0, 0, 0]),
    ],
)
def test_weights_by_hand(correction, weights, beyond):
    found, limited = correction_weights(P, Q, MASK, correction, limit=3.0)
    torch.testing.assert_close(found, torch.tensor([weights], dtype=torch.float32))
    assert limited.tolist() == [beyond]


@pytest.mark.parametrize(
    ("correction", "mode", "least"),
    [
        ("truncate", "token_truncate", None),
        ("mask", "token_mask", 0.5),
        ("sequence_mask", "sequence_mask", 0.5),
    ],
)
def test_weights_are_those_of_trl(trainer, correction, mode, least):
    """TRL computes them in the middle of a method, of which this is the statement."""
    source = textwrap.dedent(inspect.getsource(type(trainer)._generate_and_score_completions))
    (own,) = [
        node for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If) and "per_token_logps_diff =" in ast.unparse(node)
        and "vllm_importance_sampling_correction" in ast.unparse(node.test)
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    p, q = -3 * torch.rand(2, 40, 4, generator=generator, dtype=torch.float64)
    mask = torch.arange(4) < torch.randint(1, 5, (40, 1), generator=generator)
    settings = types.SimpleNamespace(
        use_vllm=True, vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=least, vllm_importance_sampling_clip_max=2.0,
    )  # fmt: skip
    names = {
        "self": settings, "torch": torch, "math": math, "tool_mask": None, "completion_mask": mask.long(),
        "old_per_token_logps": p, "sampling_per_token_logps": q,
    }  # fmt: skip
    exec(compile(ast.Module([own], []), "trl", "exec"), names)
    expected = names["vllm_importance_sampling_ratio"].expand_as(p)
    found, beyond = correction_weights(p, q, mask, correction, limit=2.0)
    assert torch.allclose(found[mask], expected[mask], atol=1e-12)
    assert 0 < float(beyond[mask].mean()) < 1


def test_what_stands_behind_the_mask_does_not_matter():
    mask = torch.tensor([[True, False, True, False]])
    q = Q.masked_fill(~mask, -math.inf)
    weights, beyond = correction_weights(P, q, mask)
    assert weights.isfinite().all()
    assert weights[0, 1] == 1
    assert beyond[0, 1] == 0


def test_no_gradient_goes_through_the_weights():
    logps = P.clone().requires_grad_()
    weights, _ = correction_weights(logps, Q, MASK)
    assert not weights.requires_grad


def test_the_weighted_gradient_is_that_of_sampling_from_the_policy():
    """Over all tokens of a small vocabulary: sum q (p / q) A grad log p = sum p A grad log p."""
    torch.manual_seed(0)
    logits = torch.randn(5, requires_grad=True)
    q = torch.softmax(torch.randn(5), 0)
    advantages = torch.randn(5)
    logps = torch.log_softmax(logits, 0)[:, None]
    mask = torch.ones(5, 1, dtype=torch.bool)
    weights, _ = correction_weights(logps, q.log()[:, None], mask, limit=1e9)
    # Each token is a completion of one token that comes up q of the time: its advantage carries that share.
    loss, _ = grpo_loss(logps, logps.detach(), None, advantages * q, mask, 1.0, kl_coef=0.0, weights=weights)
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(logps[:, 0].exp() * advantages).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_the_kl_term_is_not_weighted():
    torch.manual_seed(0)
    logps, ref = torch.randn(2, 3), torch.randn(2, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    arguments = (logps, logps, ref, torch.zeros(2), mask, 2.0)
    plain, _ = grpo_loss(*arguments, kl_coef=0.5)
    weighted, _ = grpo_loss(*arguments, kl_coef=0.5, weights=torch.full((2, 3), 7.0))
    assert float(plain) == float(weighted)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_weights_scale_each_tokens_surrogate(loss_type):
    torch.manual_seed(0)
    logps = torch.randn(2, 3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    arguments = (logps, logps, None, torch.tensor([1.0, -2.0]), mask, 2.0)
    options = {"kl_coef": 0.0, "loss_type": loss_type, "num_tokens": 4.0, "max_tokens": 3}
    plain, _ = grpo_loss(*arguments, **options)
    doubled, _ = grpo_loss(*arguments, **options, weights=torch.full((2, 3), 2.0))
    assert float(doubled) == pytest.approx(2 * float(plain))


def test_bad_settings():
    with pytest.raises(ValueError, match="one of truncate, mask, none"):
        correction_weights(P, Q, MASK, "clip")
    with pytest.raises(ValueError, match="above 1"):
        correction_weights(P, Q, MASK, limit=0.5)


def test_the_mask_of_whole_completions_by_hand():
    """Products of the ratios: 2 * 9 * 1/9 * 1 = 2, and 1/9 without the first two tokens."""
    mask = torch.tensor([[True] * 4, [False, False, True, True]])
    p, q = P.repeat(2, 1), Q.repeat(2, 1)
    weights, beyond = correction_weights(p, q, mask, "sequence_mask", limit=3.0)
    torch.testing.assert_close(weights, torch.tensor([[2.0] * 4, [1 / 9, 1 / 9, 0.0, 0.0]]))
    assert beyond.tolist() == [[0] * 4, [0, 0, 1, 1]]


def test_completions_that_are_left_out():
    """Gaps of .2, .2 and -1 nats per token; only unlikely completions with a negative advantage are left out."""
    sampled = torch.full((4, 2), -1.0)
    logps = torch.tensor([[-1.1, -1.3], [-1.1, -1.3], [0.0, 0.0], [-1.2, -9.0]])
    mask = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
    advantages = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    assert off_policy_mask(logps, sampled, advantages, mask, 0.1).tolist() == [[0], [1], [1], [0]]
    assert off_policy_mask(logps, sampled, advantages, mask, 0.25).tolist() == [[1], [1], [1], [1]]
    tokens = torch.tensor([[-3.0, 1.0], [-1.0, 3.0], [-1.0, 0.0], [1.0, -9.0]])  # what a mask hides does not count
    assert off_policy_mask(logps, sampled, tokens, mask, 0.1).tolist() == [[0], [1], [1], [1]]


def test_weights_are_multiplied_and_counted():
    mask = torch.ones(2, 4, dtype=torch.bool)
    p, q = P.repeat(2, 1), Q.repeat(2, 1)
    policy = p - torch.tensor([[5.0], [0.0]])
    advantages = torch.tensor([-1.0, 1.0])
    weights, sums = token_weights(("mask", 3.0), 1.0, policy, p, q, advantages, mask)
    torch.testing.assert_close(weights, torch.tensor([[0.0] * 4, [2.0, 0, 0, 1]]))
    assert (float(sums["corrected"]), float(sums["off_policy"])) == (1.0, 1.0)
    assert token_weights(None, None, policy, p, q, advantages, mask) == (None, {})
