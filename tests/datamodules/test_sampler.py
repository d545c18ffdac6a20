import pytest
import torch

from mrg.datamodules.sampler import StudySampler


def orders(num_studies, num_ranks=1, **kwargs):
    return [
        list(StudySampler(range(num_studies), num_ranks=num_ranks, rank=rank, **kwargs)) for rank in range(num_ranks)
    ]


def test_each_study_once_in_an_order_of_seed_and_epoch_alone():
    first = orders(20, seed=3)[0]
    torch.rand(7)  # the global generator has no say
    assert sorted(first) == list(range(20))
    assert first == orders(20, seed=3)[0]
    others = [orders(20, seed=4)[0], orders(20, seed=3, epoch=1)[0], orders(20, seed=2, epoch=1)[0]]
    assert len({tuple(order) for order in [first, *others]}) == 4


def test_ranks_share_the_batches_of_one():
    whole = orders(12, seed=0)[0]
    parts = orders(12, num_ranks=2, seed=0)
    for batch in range(3):
        union = {study for part in parts for study in part[2 * batch : 2 * batch + 2]}
        assert union == set(whole[4 * batch : 4 * batch + 4])


@pytest.mark.parametrize(("num_studies", "num_ranks"), [(7, 2), (2, 3), (1, 4)])
def test_uneven_ranks_repeat_studies(num_studies, num_ranks):
    parts = orders(num_studies, num_ranks, seed=0)
    assert len({len(part) for part in parts}) == 1
    assert {study for part in parts for study in part} == set(range(num_studies))
    assert len(parts[0]) == len(StudySampler(range(num_studies), 0, num_ranks))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_an_epoch_goes_on_and_the_next_is_whole(num_ranks):
    for rank in range(num_ranks):
        whole = StudySampler(range(10), 0, num_ranks, rank)
        resumed = StudySampler(range(10), 0, num_ranks, rank, epoch=2, start=3)
        whole.set_epoch(2)
        resumed.set_epoch(2)
        assert list(resumed) == list(whole)[3:]
        assert len(resumed) == len(whole)  # Lightning counts batches from the epoch's beginning
        whole.set_epoch(3)
        resumed.set_epoch(3)
        assert list(resumed) == list(whole)
