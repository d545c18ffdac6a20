import pytest
import torch

from mrg.modules.prefix.packing import Prompts, pack


def prompts():
    """Two prompts of 2 and 3 tokens, padded on the left; an embedding is ten times its place in the table."""
    mask = torch.tensor([[False, True, True], [True, True, True]])
    embeds = torch.arange(6.0).view(2, 3, 1) * 10
    positions = torch.stack([torch.tensor([[1, 4, 5], [7, 8, 9]])] * 3)
    positions[0, 1] = 7  # an image's time stands still
    visual = torch.tensor([[False, True, False], [False, True, True]])
    return Prompts(embeds, mask, positions, visual)


IDS = torch.tensor([[11, 12, 13], [21, 0, 0], [31, 32, 0], [41, 42, 43]])
MASK = torch.tensor([3, 1, 2, 3])[:, None] > torch.arange(3)


def embed(ids):
    return ids[..., None].float()


def test_a_row_by_hand():
    """The last token of a completion is never read: 12 tokens of prompts and completions make a row of 10."""
    packed = pack(prompts(), IDS, MASK, embed)
    assert packed.embeds[0, :, 0].tolist() == [10, 20, 30, 40, 50, 11, 12, 31, 41, 42]
    assert packed.positions.shape == (3, 1, 10)
    assert packed.positions[0, 0].tolist() == [4, 5, 7, 7, 7, 6, 7, 10, 10, 11]
    assert packed.positions[1, 0].tolist() == packed.positions[2, 0].tolist() == [4, 5, 7, 8, 9, 6, 7, 10, 10, 11]
    assert packed.visual[0].tolist() == [True, False, False, True, True] + [False] * 5
    assert packed.layout.prompts == [(0, 2), (2, 5)]
    assert packed.layout.completions == [(5, 7), (7, 10)]
    assert [x.tolist() for x in packed.layout.slots] == [[[0, 1]], [[0, 0], [1, 2]]]
    assert [x.tolist() for x in packed.layout.real] == [[[True, True]], [[True, False], [True, True]]]
    assert [x.tolist() for x in packed.layout.tokens] == [[0, 1], [0, 2, 3]]


def test_each_token_is_predicted_by_the_one_before_it():
    packed = pack(prompts(), IDS, MASK, embed)
    assert packed.predicts.tolist() == [1, 5, 6, 1, 4, 7, 4, 8, 9]  # of 11 12 13 | 21 | 31 32 | 41 42 43


def test_prompts_alone():
    nothing = torch.zeros(0, 1, dtype=torch.long)
    packed = pack(prompts(), nothing, nothing.bool(), embed)
    assert packed.embeds[0, :, 0].tolist() == [10, 20, 30, 40, 50]
    assert packed.layout.completions == [(5, 5), (5, 5)]
    assert packed.predicts.tolist() == []


def test_padding_is_not_looked_at():
    other = prompts()
    other.embeds[0, 0], other.positions[:, 0, 0] = torch.nan, 99
    one, two = pack(prompts(), IDS, MASK, embed), pack(other, IDS.where(MASK, 77), MASK, embed)
    assert torch.equal(one.embeds, two.embeds)
    assert torch.equal(one.positions, two.positions)


def test_bad_completions():
    with pytest.raises(ValueError, match="for each of 2 prompts, but got 3"):
        pack(prompts(), IDS[:3], MASK[:3], embed)
    with pytest.raises(ValueError, match="row 2 has none"):
        pack(prompts(), IDS, MASK & (torch.arange(4) != 2)[:, None], embed)
