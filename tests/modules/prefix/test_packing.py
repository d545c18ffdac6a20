import pytest
import torch

from mrg.modules.prefix.packing import Masks, Prompts, _layout, attention_mask, pack


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


def test_images_keep_their_tokens_without_padding():
    given = prompts()
    given.blocks = torch.tensor([[-1, 0, -1], [0, 0, 1]])
    assert [x.tolist() for x in pack(given, IDS, MASK, embed).layout.blocks] == [[0, -1], [0, 0, 1]]
    assert pack(prompts(), IDS, MASK, embed).layout.blocks == []


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


def test_the_first_token_of_a_completion_comes_after_the_largest_position_of_its_prompt():
    """Of time, height and width, padding aside: the second prompt's largest is the height 9."""
    given = prompts()
    given.positions[:, 0, 0] = 99
    given.positions[2, 1] = torch.tensor([3, 4, 5])
    assert given.next_position.tolist() == [6, 10]
    first = Prompts(torch.zeros(1, 2, 1), torch.tensor([[False, True]]), torch.zeros(1, 1, 2, dtype=torch.long), None)
    assert first.next_position.tolist() == [1]


def test_rows_of_prompts_take_their_images_along():
    given = prompts()
    given.deepstack = (
        torch.tensor([[1.0], [2.0], [3.0]]),
        torch.tensor([[4.0], [5.0], [6.0]]),
    )
    given.blocks = torch.tensor([[-1, 0, -1], [-1, 0, 0]])
    rows = given.rows(torch.tensor([1, 0, 1]))
    assert rows.embeds[:, :, 0].tolist() == [[30, 40, 50], [0, 10, 20], [30, 40, 50]]
    assert rows.mask.sum(1).tolist() == [3, 2, 3]
    assert rows.positions[1].tolist() == [[7, 8, 9], [1, 4, 5], [7, 8, 9]]
    assert rows.visual.sum(1).tolist() == [2, 1, 2]
    assert [layer[:, 0].tolist() for layer in rows.deepstack] == [[2, 3, 1, 2, 3], [5, 6, 4, 5, 6]]
    assert rows.blocks.tolist() == [[-1, 0, 0], [-1, 0, -1], [-1, 0, 0]]
    plain = prompts().rows(torch.tensor([1]))
    assert (plain.deepstack, plain.blocks) == ((), None)


def test_gradients_of_several_passes_are_sent_back_at_once():
    """Twice the embeddings and once the first deepstack layer were read; the second layer has no gradient."""
    source = torch.tensor(3.0, requires_grad=True)
    given = prompts()
    given.embeds = given.embeds * source
    given.deepstack = (source * torch.ones(3, 1), source * torch.ones(3, 1))
    leaves = given.detached()
    for _ in range(2):
        leaves.embeds.sum().backward()
    leaves.deepstack[0].sum().backward()
    assert source.grad is None
    given.send_back(leaves, torch.Tensor.backward)
    assert source.grad == 2 * (10 + 20 + 30 + 40 + 50) + 3
    untouched = given.detached()
    given.send_back(untouched, lambda loss: pytest.fail("there is nothing to send back"))
    frozen = prompts().detached()
    assert not frozen.embeds.requires_grad


def test_masks_of_prompts_by_hand():
    """Tokens 1 and 2 are one image, 3 is another; a window of 2 also cuts within an image."""
    blocks = torch.tensor([-1, 0, 0, 1])
    both = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert attention_mask(blocks, None).int().tolist() == both
    assert attention_mask(blocks[None], None).int().tolist() == [both]
    cut = [[1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert attention_mask(blocks, 2).int().tolist() == cut

    layout = _layout([3, 2], [[], []], torch.device("cpu"))
    assert layout.prompt_masks(None, torch.device("cpu")) == [None, None]
    assert layout.prompt_masks(3, torch.device("cpu")) == [None, None]
    first, second = layout.prompt_masks(2, torch.device("cpu"))
    assert first.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert second is None


def test_masks_of_completions_by_hand():
    """Prompts of 3 and 1 tokens, completions of which 2 and 1 tokens are read."""
    layout, cpu = _layout([3, 1], [[2, 1], [1, 0]], torch.device("cpu")), torch.device("cpu")
    assert layout.completion_masks(None, cpu) == [None, None]
    assert layout.completion_masks(5, cpu) == [None, None]
    first, second = layout.completion_masks(4, cpu)
    assert (first.int().tolist(), second) == ([[1, 1, 1], [0, 1, 1]], None)
    assert layout.completion_masks(3, cpu)[0].int().tolist() == [[0, 1, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match="A completion of 2 tokens does not fit the window of 2 tokens"):
        layout.completion_masks(2, cpu)


def test_arguments_of_the_kernels():
    layout = _layout([3, 1], [[2, 1], [1, 0]], torch.device("cpu"))
    plain = Masks.of(layout, None, torch.zeros(1))
    assert plain.prompt(0) == {"is_causal": True}
    assert plain.completion(0) == {"is_causal": False}
    assert [steps.tolist() for steps in plain.steps] == [[0, 1, 0], [0]]
    cut = Masks.of(layout, 3, torch.zeros(1, dtype=torch.float64))
    assert cut.prompt(0) == {"is_causal": True}
    given, no = cut.completion(0), -torch.inf
    assert given["is_causal"] is False
    assert given["attn_mask"].dtype == torch.float64
    assert given["attn_mask"].tolist() == [[[[no, 0, 0], [no, no, 0], [no, 0, 0]]]]  # token by token of both rows
    narrow = Masks.of(_layout([3], [[]], torch.device("cpu")), 2, torch.zeros(1)).prompt(0)
    assert narrow["is_causal"] is False
    assert narrow["attn_mask"].tolist() == [[[[0, no, no], [0, 0, no], [no, 0, 0]]]]


def test_masks_are_made_on_the_device_of_the_row():
    layout, meta = _layout([3, 1], [[2, 1], [1, 0]], torch.device("cpu")), torch.device("meta")
    masks = [layout.prompt_masks(2, meta)[0], layout.completion_masks(4, meta)[0]]
    masks.append(attention_mask(torch.zeros(3, dtype=torch.long, device=meta), 2))
    assert [mask.device for mask in masks] == [meta] * 3
    moved = _layout([3, 1], [[2, 1], [1, 0]], meta)
    assert {x.device for x in (*moved.slots, *moved.real, *moved.tokens)} == {meta}
