import pytest

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.evaluation import PartCollator, RankBatches


@pytest.mark.parametrize("num_studies", [1, 2, 5, 7, 12])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 20])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_every_study_counts_once_and_ranks_make_equally_many_batches(num_studies, batch_size, num_ranks):
    ranks = [RankBatches(num_studies, batch_size, num_ranks, rank) for rank in range(num_ranks)]
    counted = [index for rank in ranks for indices, counts in rank for index in indices if counts]
    assert sorted(counted) == list(range(num_studies))
    assert len({len(list(rank)) for rank in ranks}) == 1
    assert all(len(list(rank)) == len(rank) for rank in ranks)
    assert all(0 < len(indices) <= batch_size for rank in ranks for indices, _ in rank)


def test_by_hand():
    first, second = (list(RankBatches(7, 3, 2, rank)) for rank in range(2))
    assert first == [([0, 2, 4], True), ([6], True)]
    assert second == [([1, 3, 5], True), ([0], False)]


def test_a_batch_says_whether_it_counts(policy, studies):
    collate = PartCollator(StudyCollator(policy.processor, "Report:"), studies)
    assert collate(([2, 5], True)).study_id == [studies[2].id, studies[5].id]
    assert collate(([2, 5], True)).num_counted == 2
    assert collate(([0], False)).num_counted == 0
