import pytest
import torch

from mrg.modules.policy import logps as logps_module
from mrg.modules.policy.logps import token_logps

T, D, V = 11, 6, 23
BANNED = torch.tensor([3, 20, 22])


def tensors(dtype=torch.float64):
    """Hidden states, weight, and ids that are allowed."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (T, V))
    ids = torch.randint(4, 20, (T,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), ids


def plain(hidden, weight, ids, temperature=1.0, banned=None):
    """Logits of everything at once, and the entropy of torch.distributions."""
    logits = hidden @ weight.T / temperature
    if banned is not None:
        logits = logits.index_fill(1, banned, -torch.inf)
    logps = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    allowed = torch.ones(V, dtype=torch.bool).index_fill(
        0, torch.tensor([]).long() if banned is None else banned, False
    )
    return logps, torch.distributions.Categorical(logits=logits.detach()[:, allowed]).entropy()


@pytest.fixture(params=[1, 4 * V, 2**25], ids=["one token", "four tokens", "all"])
def tile(request, monkeypatch):
    monkeypatch.setattr(logps_module, "TILE", request.param)


@pytest.mark.parametrize("banned", [None, BANNED])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_values_and_gradients_are_autograds(tile, temperature, banned):
    hidden, weight, ids = tensors()
    expected, entropy = plain(hidden, weight, ids, temperature, banned)
    got = token_logps(hidden, weight, ids, temperature, banned)
    assert torch.allclose(got.logps, expected, atol=1e-12)
    assert torch.allclose(got.entropy, entropy, atol=1e-12)
    assert not got.entropy.requires_grad
    factor = torch.randn(T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * factor).sum(), (hidden, weight))
    for one, other in zip(torch.autograd.grad((got.logps * factor).sum(), (hidden, weight)), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("banned", [None, BANNED])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gradient_of_the_entropy_is_autograds(tile, temperature, banned):
    hidden, weight, ids = tensors()
    logits = hidden @ weight.T / temperature
    allowed = torch.ones(V, dtype=torch.bool).index_fill(
        0, torch.tensor([]).long() if banned is None else banned, False
    )
    expected = (
        plain(hidden, weight, ids, temperature, banned)[0],
        torch.distributions.Categorical(logits=logits[:, allowed]).entropy(),
    )
    got = token_logps(hidden, weight, ids, temperature, banned, entropy_gradient=True)
    factors = torch.randn(2, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for chosen in (hidden, weight):
        one, other = (
            torch.autograd.grad(
                sum((f * x).sum() for f, x in zip(factors, pair, strict=True)), chosen, retain_graph=True
            )
            for pair in (got, expected)
        )
        assert torch.allclose(one[0], other[0], atol=1e-12)


def test_a_banned_token_has_no_probability_and_gets_no_gradient():
    hidden, weight, ids = tensors()
    ids[0] = BANNED[0]
    logps = token_logps(hidden, weight, ids, 1.0, BANNED).logps
    assert logps[0] == -torch.inf
    logps[1:].sum().backward()
    assert weight.grad[BANNED].abs().max() == 0
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("trained", ["hidden", "weight", "neither"])
def test_only_what_is_trained_gets_a_gradient(trained):
    hidden, weight, ids = tensors()
    hidden.requires_grad_(trained == "hidden")
    weight.requires_grad_(trained == "weight")
    logps = token_logps(hidden, weight, ids).logps
    assert logps.requires_grad == (trained != "neither")
    if logps.requires_grad:
        logps.sum().backward()
    assert (hidden.grad is not None) == (trained == "hidden")
    assert (weight.grad is not None) == (trained == "weight")


@pytest.mark.parametrize("trained_head", [False, True])
def test_nothing_as_large_as_the_logits_is_kept(trained_head):
    hidden, weight, ids = tensors()
    weight.requires_grad_(trained_head)
    shapes = []

    def keep(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logps(hidden, weight, ids, 1.0, BANNED).logps.sum().backward()
    assert (T, D) in shapes
    assert ((V, D) in shapes) == trained_head
    assert not any(shape[-1] == V or tuple(shape) == (V, T) for shape in shapes if len(shape) > 1)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_sums_in_float32(autocast):
    """Either the states and the head are bfloat16 themselves, or autocast makes them so."""
    hidden, weight, ids = tensors(torch.float32 if autocast else torch.bfloat16)
    low = [x.detach().bfloat16().double().requires_grad_() for x in (hidden, weight)]
    expected, _ = plain(*low, ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logps = token_logps(hidden, weight, ids).logps
        plain_logps = torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, ids[:, None])[:, 0]
    assert logps.dtype == torch.float32
    assert torch.allclose(logps, plain_logps, atol=1e-6)
    assert torch.allclose(logps.double(), expected, atol=0.05)
    logps.sum().backward()
    expected.sum().backward()
    for one, other in zip((hidden, weight), low, strict=True):
        assert one.grad.dtype == one.dtype
        assert (one.grad - other.grad).norm() < 0.02 * other.grad.norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_of_a_bfloat16_head_does_not_lose_with_every_tile(monkeypatch, autocast):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator).bfloat16() for n in (400, 50))
    ids = torch.randint(50, (400,), generator=generator)
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    (exact[0] @ exact[1].T).log_softmax(-1).gather(1, ids[:, None]).sum().backward()
    errors = []
    for tokens in (400, 40, 4):
        monkeypatch.setattr(logps_module, "TILE", tokens * 50)
        low = weight.to(torch.float32 if autocast else torch.bfloat16, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            token_logps(hidden, low, ids).logps.sum().backward()
        assert low.grad.dtype == low.dtype
        errors.append((low.grad - exact[1].grad).norm() / exact[1].grad.norm())
    assert max(errors) < 0.004


def test_no_tokens():
    hidden, weight, ids = tensors()
    logps = token_logps(hidden[:0], weight, ids[:0]).logps
    assert logps.shape == (0,)
    logps.sum().backward()
    assert weight.grad.abs().max() == 0
