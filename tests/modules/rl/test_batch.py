import pytest
import torch

from mrg.modules.rl.batch import micro_batches, minibatches


def test_steps_by_hand():
    assert minibatches(6, 1) == [[0, 1, 2, 3, 4, 5]]
    assert minibatches(6, 3) == [[0, 1], [2, 3], [4, 5]]
    assert minibatches(7, 3) == [[0, 1], [2, 3], [4, 5, 6]]


@pytest.mark.parametrize(("num_groups", "num_steps"), [(5, 5), (8, 3), (16, 7)])
def test_each_group_is_in_one_step_in_a_drawn_order(num_groups, num_steps):
    first, again, other = (
        minibatches(num_groups, num_steps, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert sorted(group for step in first for group in step) == list(range(num_groups))
    sizes = [len(step) for step in first]
    assert max(sizes) - min(sizes) <= 1


def test_more_steps_than_groups():
    with pytest.raises(ValueError, match=r"num_minibatches \(3\), but got 2: raise data\.init_args\.batch_size"):
        minibatches(2, 3)


def test_passes_by_hand():
    num_tokens = [5, 4, 1, 20, 3, 2]
    assert micro_batches(range(6), num_tokens, 10) == [[0, 1, 2], [3], [4, 5]]
    assert micro_batches([5, 3, 0], num_tokens, 10) == [[5], [3], [0]]
    assert micro_batches([4, 0, 5], num_tokens, 10) == [[4, 0, 5]]  # exactly the budget
    assert micro_batches(range(6), num_tokens, 1) == [[0], [1], [2], [3], [4], [5]]
    assert micro_batches([], num_tokens, 10) == []
