"""What vLLM engines are asked for: images are read and encoded for the studies that are asked for, once per batch."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

from mrg.datamodules.collate import StudyCollator
from mrg.modules.rollout.exchange import Contents, check_prompt, prompt_tokens, sampling_options, to_rollout


@pytest.fixture
def batch(policy, studies):
    return StudyCollator(policy.processor, "Report:", max_views=2)(studies[:4])


class Counted:
    """Image parts that remember the size of each image."""

    def __init__(self):
        self.sizes = []

    def __call__(self, image):
        assert isinstance(image, Image.Image)
        self.sizes.append(image.size)
        return {"type": "image_pil", "image_pil": image}


def test_only_what_is_asked_for_is_read_and_only_once(policy, batch):
    part = Counted()
    contents = Contents(policy, part)
    first = contents.of(batch, 2)
    assert len(part.sizes) == len(batch.views[2])
    assert contents.of(batch, 2) is first
    assert len(part.sizes) == len(batch.views[2])
    contents.of(batch, 0)
    assert len(part.sizes) == len(batch.views[2]) + len(batch.views[0])


def test_the_images_of_another_batch_are_read_again(policy, batch):
    part = Counted()
    contents = Contents(policy, part)
    contents.of(batch, 0)
    contents.of(dataclasses.replace(batch), 0)
    assert len(part.sizes) == 2 * len(batch.views[0])


def test_each_study_gets_its_own_images_in_the_size_that_the_policy_reads(policy, batch):
    contents = Contents(policy, Counted())
    grids = iter(batch.image_grid_thw.tolist())
    patch = policy.processor.image_processor.patch_size
    expected = [[(columns * patch, rows * patch) for _, rows, columns in (next(grids) for _ in v)] for v in batch.views]
    assert {len(sizes) for sizes in expected} == {1, 2}  # unequal, so that a wrong offset would show
    for row in reversed(range(len(batch))):
        content = contents.of(batch, row)
        images = [part["image_pil"] for part in content if part["type"] == "image_pil"]
        assert [image.size for image in images] == expected[row]
        for image, view in zip(images, batch.views[row], strict=True):
            assert (
                image.tobytes() == view.load().resize(image.size, policy.processor.image_processor.resample).tobytes()
            )
        assert [part for part in content if part["type"] == "text"] == [
            part for part in batch.contents[row] if part["type"] == "text"
        ]


def test_options_name_every_setting_and_ban_tokens(policy):
    options = sampling_options(policy, 3, 0.7, 2**31 + 5)
    assert set(json.loads(json.dumps(options))) == set(options)
    assert (options["n"], options["seed"], options["stop_token_ids"]) == (3, 5, [policy.eos_id])
    assert options["logit_bias"] == dict.fromkeys(policy.banned_ids, -100)


def test_another_prompt_is_refused_by_study_and_engine(batch):
    prompt = prompt_tokens(batch, 1)
    assert len(prompt) == int(batch.prompt_mask[1].sum())
    check_prompt(tuple(prompt), prompt, "s1", "engine")
    with pytest.raises(ValueError, match=r"Study s1: the rollout server http://a reads another prompt than the policy"):
        check_prompt([*prompt, 1], prompt, "s1", "server http://a")


def test_tokens_become_a_rollout(policy):
    eos = policy.eos_id
    rollout = to_rollout(policy, [[5, 6, eos], [7, 8], [9, 5, 6, 7]], [[-1, -2, -3], [-4, -5], [0, 0, 0, -1]], "cpu")
    assert rollout.completion_ids.tolist() == [[5, 6, eos, policy.pad_id], [7, 8] + [policy.pad_id] * 2, [9, 5, 6, 7]]
    assert rollout.completion_mask.sum(1).tolist() == [3, 2, 4]
    assert rollout.old_logps.tolist() == [[-1, -2, -3, 0], [-4, -5, 0, 0], [0, 0, 0, -1]]
    assert rollout.truncated.tolist() == [False, True, True]
    assert torch.equal(rollout.completion_mask, rollout.completion_ids != policy.pad_id)
    assert rollout.texts[1] == policy.processor.tokenizer.decode([7, 8], skip_special_tokens=True).strip()
