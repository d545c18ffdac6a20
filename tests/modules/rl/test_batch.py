import pytest
import torch

from mrg.modules.rl.batch import MicroBatch, Step, micro_batches, minibatches
from mrg.modules.rollout.sampling import Rollout


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


def a_round():
    """Three groups of two completions, of 1 to 5 tokens; the fourth is truncated."""
    mask = torch.arange(5) < torch.tensor([1, 3, 2, 5, 4, 2])[:, None]
    ids = torch.arange(30).view(6, 5)
    truncated = torch.tensor([False, False, False, True, False, False])
    return Rollout(ids, mask, torch.zeros(6, 5), [""] * 6, truncated)


def test_tokens_that_normalize_the_loss_of_a_step():
    step = Step(a_round(), torch.zeros(6), None, groups=[0, 1])
    assert step.num_groups(2) == 3
    assert step.num_loss_tokens(2, 3, "grpo", mask_truncated=False) == 1 + 3 + 2 + 5
    assert step.num_loss_tokens(2, 3, "bnpo", mask_truncated=True) == 1 + 3 + 2
    for kind in ("dapo", "cispo"):  # of the whole round, divided by its steps
        assert step.num_loss_tokens(2, 3, kind, mask_truncated=False) == pytest.approx(17 / 3)
        assert step.num_loss_tokens(2, 2, kind, mask_truncated=True) == 12 / 2


def test_uncertain_tokens_of_a_step():
    step = Step(a_round(), torch.zeros(6), None, groups=[1, 2])
    assert step.num_uncertain_tokens(2, mask_truncated=False) == 2 + 5 + 4 + 2
    step.uncertain = a_round().completion_mask & (torch.arange(5) > 0)  # all but the first of each completion
    assert step.num_uncertain_tokens(2, mask_truncated=False) == 1 + 4 + 3 + 1
    assert step.num_uncertain_tokens(2, mask_truncated=True) == 1 + 3 + 1


def test_a_micro_batch_is_as_wide_as_its_longest_completion():
    part = MicroBatch.of(a_round(), [2, 0], 2)
    assert part.groups.tolist() == [2, 0]
    assert part.rows.tolist() == [4, 5, 0, 1]
    assert part.completion_ids.tolist() == [[20, 21, 22, 23], [25, 26, 27, 28], [0, 1, 2, 3], [5, 6, 7, 8]]
    assert part.mask.sum(1).tolist() == [4, 2, 1, 3]
    assert part.mask.shape == (4, 4)
    assert part.weight == 1
    assert MicroBatch.of(a_round(), [0], 2, weight=0.0).weight == 0
    assert part.take(torch.arange(6)).tolist() == [4, 5, 0, 1]
    assert torch.equal(part.take(a_round().completion_ids), part.completion_ids)
