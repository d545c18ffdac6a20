import math

import pytest
import torch

from mrg.modules.loss import grpo_loss, kl_k3


def rows(seed=0, n=6, c=5):
    g = torch.Generator().manual_seed(seed)
    logps = (-torch.rand(n, c, generator=g, dtype=torch.float64)).requires_grad_()
    old, ref = (-torch.rand(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(c) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    return logps, old, ref, torch.randn(n, generator=g, dtype=torch.float64), mask


def test_hand_computed():
    logps = torch.log(torch.tensor([[0.5, 0.6]], dtype=torch.float64))
    old = torch.log(torch.tensor([[0.25, 0.5]], dtype=torch.float64))
    ref = torch.log(torch.tensor([[0.5, 0.3]], dtype=torch.float64))
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, stats = grpo_loss(logps, old, ref, torch.tensor([1.0]), mask, 1, kl_coef=0.1)
    kl = 0.5 - math.log(0.5) - 1
    # ratios 2 and 1.2, both limited to 1.2
    assert float(loss) == pytest.approx((-1.2 - 1.2 + 0.1 * kl) / 2)
    assert float(stats["kl"]) == pytest.approx(kl / 2)


def test_ratio_one_gives_the_reinforce_gradient():
    logps, _, _, advantages, mask = rows()
    loss, _ = grpo_loss(logps, logps.detach(), None, advantages, mask, 6, kl_coef=0.0)
    (grad,) = torch.autograd.grad(loss, logps)
    expected = -advantages[:, None] * mask / mask.sum(1, keepdim=True) / 6
    assert torch.allclose(grad, expected, atol=1e-15)


@pytest.mark.parametrize("split", [1, 2, 4, 5])
def test_micro_batch_split_changes_nothing(split):
    logps, old, ref, advantages, mask = rows()
    whole, _ = grpo_loss(logps, old, ref, advantages, mask, 6)
    parts = sum(
        grpo_loss(logps[s], old[s], ref[s], advantages[s], mask[s], 6)[0]
        for s in (slice(i, i + split) for i in range(0, 6, split))
    )
    assert float(parts) == pytest.approx(float(whole), abs=1e-14)
    a, b = torch.autograd.grad(whole, logps)[0], torch.autograd.grad(parts, logps)[0]
    assert torch.allclose(a, b, atol=1e-15)


def test_masked_tokens_get_no_gradient_even_where_infinite():
    logps, old, ref, advantages, mask = rows()
    old = old.masked_fill(~mask, -torch.inf)
    loss, _ = grpo_loss(logps, old, ref, advantages, mask, 6)
    (grad,) = torch.autograd.grad(loss, logps)
    assert torch.isfinite(loss)
    assert grad[~mask].abs().max() == 0


def test_kl_is_zero_only_at_equality():
    a, b = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.5])
    assert kl_k3(a, b).tolist() == pytest.approx([0.0, math.exp(0.5) - 1.5])
