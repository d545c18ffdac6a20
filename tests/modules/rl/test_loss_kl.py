import math

import pytest
import torch

from mrg.modules.rl.loss import grpo_loss, kl_estimate


def policies(dtype=torch.float64):
    """Logits of a policy, and the log-probabilities of an older one and of a reference, over five tokens."""
    g = torch.Generator().manual_seed(0)
    logits, old, ref = (torch.randn(5, generator=g, dtype=dtype) for _ in range(3))
    return logits.requires_grad_(), old.log_softmax(0), ref.log_softmax(0)


def kl(p, q):
    return (p.exp() * (p - q)).sum()


def gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


def test_hand_computed():
    logps, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.5])
    assert kl_estimate(logps, ref, "k1").tolist() == [0.0, -0.5]
    assert kl_estimate(logps, ref, "k2").tolist() == [0.0, 0.125]
    assert kl_estimate(logps, ref, "k3").tolist() == pytest.approx([0.0, math.exp(0.5) - 1.5])
    with pytest.raises(ValueError, match="'k1', 'k2' or 'k3', but got 'k4'"):
        kl_estimate(logps, ref, "k4")


def test_expected_values():
    logits, _, ref = policies()
    logps = logits.log_softmax(0).detach()
    exact = kl(logps, ref)
    for estimator, unbiased in (("k1", True), ("k2", False), ("k3", True)):
        expected = (logps.exp() * kl_estimate(logps, ref, estimator)).sum()
        assert torch.allclose(expected, exact, atol=1e-14) == unbiased
    assert (kl_estimate(logps, ref, "k3") >= 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_expected_gradients_on_policy(estimator):
    logits, _, ref = policies()
    logps = logits.log_softmax(0)
    got = gradient((logps.detach().exp() * kl_estimate(logps, ref, estimator)).sum(), logits)
    exact = {
        "k1": torch.zeros(5, dtype=torch.float64),
        "k2": gradient(kl(logits.log_softmax(0), ref), logits),
        "k3": gradient(kl(ref, logits.log_softmax(0)), logits),
    }
    assert torch.allclose(got, exact[estimator], atol=1e-14)


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
@pytest.mark.parametrize("loss_type", ["grpo", "gspo", "cispo"])
def test_the_ratio_makes_value_and_gradient_unbiased_for_tokens_of_an_older_policy(loss_type, estimator, unbiased):
    logits, old, ref = policies()
    # Every token once, as a completion of one token; its share in the loss is weighted by how often it is sampled.
    total = torch.zeros((), dtype=torch.float64)
    for token in range(5):
        loss, _ = grpo_loss(
            logits.log_softmax(0)[token].view(1, 1),
            old[token].view(1, 1),
            ref[token].view(1, 1),
            torch.zeros(1),
            torch.ones(1, 1, dtype=torch.bool),
            1,
            kl_coef=1.0,
            loss_type=loss_type,
            num_tokens=1,
            kl_estimator=estimator,
            kl_ratio_correction=True,
        )
        total = total + old[token].exp() * loss
    exact = kl(logits.log_softmax(0), ref)
    assert torch.allclose(total, exact, atol=1e-14) == unbiased
    assert torch.allclose(gradient(total, logits), gradient(exact, logits), atol=1e-14) == unbiased
