import pytest
import torch
from torch import nn

from mrg.modules import optimizer
from mrg.modules.optimizer import average_gradients, optimizer_groups


@pytest.fixture
def alone(tmp_path):
    """A process group of one, whose sums are its own values."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("bucket", [1, 10, 1000])
def test_gradients_are_averaged_however_many_at_once(alone, monkeypatch, bucket):
    monkeypatch.setattr(optimizer, "BUCKET", bucket)
    sums, reduce = [], torch.distributed.all_reduce
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: (sums.append(x.numel()), reduce(x)))
    shapes = [(3,), (2, 2), (5,), (4, 5), (1,), (2,)]
    parameters = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    parameters[4].requires_grad = False
    parameters.append(nn.Parameter(torch.zeros(3)))
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters[:4]:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    expected = [None if p.grad is None else p.grad / 4 for p in parameters]
    average_gradients(parameters, 4)
    assert sums == {1: [3, 4, 5, 20, 2, 3], 10: [7, 5, 20, 2, 3], 1000: [34, 3]}[bucket]
    for parameter, value in zip(parameters[:4], expected[:4], strict=True):
        assert torch.equal(parameter.grad, value)
    assert parameters[4].grad is None  # frozen
    assert torch.equal(parameters[5].grad, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(parameters[6].grad, torch.zeros(3))


def test_groups_of_an_optimiser():
    shapes = [(2, 2), (2,), (3, 1, 2), (), (4, 1)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    parameters[4].requires_grad = False
    matrices, vectors = optimizer_groups(iter(parameters), 0.1)
    assert [p.shape for p in matrices["params"]] == [(2, 2), (3, 1, 2)]
    assert [p.shape for p in vectors["params"]] == [(2,), ()]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    # Without decay, one group in the parameters' order, as checkpoints have it; no group is empty.
    (every,) = optimizer_groups(parameters)
    assert [p.shape for p in every["params"]] == shapes[:4]
    assert every["weight_decay"] == 0.0
    assert len(optimizer_groups(parameters[:1], 0.1)) == 1
