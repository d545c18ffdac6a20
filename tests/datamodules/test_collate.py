import dataclasses
import re

import numpy as np
import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.study import Study, View


def study(name, *shapes, **kwargs):
    rng = np.random.default_rng(len(name))
    views = tuple(View(rng.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes)
    return Study(name, views, "The lungs are clear.", **kwargs)


@pytest.fixture
def collate(policy):
    return StudyCollator(policy.processor, "Report:")


def test_each_image_once_with_as_many_tokens_as_it_has_squares(collate, policy):
    batch = collate([study("a", (112, 112)), study("bb", (112, 112), (60, 110))])
    assert len(batch.image_grid_thw) == 3
    assert batch.pixel_values.shape[0] == int(batch.image_grid_thw.prod(1).sum())
    squares = batch.image_grid_thw.prod(1) // policy.processor.image_processor.merge_size**2
    tokens = (batch.prompt_ids == policy.base.config.image_token_id).sum(1)
    assert tokens.tolist() == [int(squares[0]), int(squares[1:].sum())]


def test_padding_is_on_the_left_and_changes_no_row(collate):
    one, two = study("a", (112, 112)), study("bb", (112, 112), (112, 112))
    batch, alone = collate([one, two]), collate([one])
    assert batch.prompt_mask[1].all()
    real = batch.prompt_mask[0]
    assert not real[0]
    assert real.int().diff().min() >= 0
    assert torch.equal(batch.prompt_ids[0][real], alone.prompt_ids[0])
    assert torch.equal(batch.pixel_values[: len(alone.pixel_values)], alone.pixel_values)


def test_max_views_and_indication(policy):
    settings = {"prompt": "Report:", "use_indication": True, "max_views": 1}
    collate = StudyCollator(policy.processor, **settings)
    batch = collate([study("a", (112, 112), (112, 112), indication="Cough.")])
    text = policy.processor.tokenizer.decode(batch.prompt_ids[0])
    assert len(batch.image_grid_thw) == 1
    assert "Indication: Cough.\nReport:" in text
    assert "Indication" not in policy.processor.tokenizer.decode(collate([study("a", (112, 112))]).prompt_ids[0])


def test_a_prior_comes_first_with_marks_that_say_which_is_which(policy, collate):
    with_prior = StudyCollator(policy.processor, "Report:", use_prior=True, max_views=2)
    earlier = dataclasses.replace(study("bb", (112, 112), (60, 110), (112, 112)), report="Small effusion.")
    current = study("a", (112, 56), prior=earlier)
    batch = with_prior([current, study("ccc", (112, 112))])
    assert torch.equal(batch.pixel_values, collate([earlier, current, study("ccc", (112, 112))]).pixel_values)
    assert len(batch.image_grid_thw) == 4
    assert batch.views[0] == (*earlier.views[:2], *current.views)
    token = policy.base.config.image_token_id
    squares = batch.image_grid_thw.prod(1) // policy.processor.image_processor.merge_size**2
    assert (batch.prompt_ids == token).sum(1).tolist() == [int(squares[:3].sum()), int(squares[3])]
    text = re.sub(
        r"<\|vision_start\|>(<\|image_pad\|>)+<\|vision_end\|>",
        lambda mark: f"<{mark[0].count('pad')}>",
        policy.processor.tokenizer.decode(batch.prompt_ids[0][batch.prompt_mask[0]]),
    )
    first, second, third = squares[:3].tolist()
    assert text == (
        f"<|im_start|>user\nImages 1 to 2, of an earlier study of this patient:\n<{first}><{second}>\n"
        f"Report of the earlier study: Small effusion.\nImage 3, of the current study:\n<{third}>\nReport:<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [sum(part["type"] == "image" for part in content) for content in batch.contents] == [3, 1]


def test_a_prior_is_shown_only_where_it_is_asked_for(policy, collate):
    current = study("a", (112, 112), prior=study("bb", (112, 112)))
    plain, alone = collate([current]), collate([study("a", (112, 112))])
    assert torch.equal(plain.prompt_ids, alone.prompt_ids)
    assert torch.equal(plain.pixel_values, alone.pixel_values)
    with_prior = StudyCollator(policy.processor, "Report:", use_indication=True, use_prior=True)
    silent = dataclasses.replace(current, prior=dataclasses.replace(current.prior, report=""), indication="Cough.")
    text = "".join(part.get("text", "[image]") for part in with_prior.content(silent))
    assert text == (
        "Image 1, of an earlier study of this patient:\n[image]\nImage 2, of the current study:\n[image]\n"
        "Indication: Cough.\nReport:"
    )


def test_the_policy_reads_both_studies(policy):
    """Another prior image, or another prior report, gives other probabilities."""
    collate = StudyCollator(policy.processor, "Report:", use_prior=True)
    priors = [study("bb", (112, 112)), study("bbb", (112, 112))]
    priors.append(dataclasses.replace(priors[0], report="Small effusion."))
    with torch.no_grad():
        ids = policy.processor.tokenizer("The heart", add_special_tokens=False, return_tensors="pt").input_ids
        logps = [
            policy.logps(
                policy.embed(collate([study("a", (112, 112), prior=prior)])), ids, torch.ones_like(ids).bool()
            ).logps
            for prior in priors
        ]
    assert torch.stack(logps).isfinite().all()
    assert not torch.allclose(logps[0], logps[1])
    assert not torch.allclose(logps[0], logps[2])


def test_device_move_keeps_the_studies(collate):
    batch = collate([study("a", (112, 112))])
    moved = batch.to("meta")
    assert moved.pixel_values.is_meta
    assert moved.studies is batch.studies
    assert (batch.target, batch.study_id, len(batch)) == (["The lungs are clear."], ["a"], 1)


def test_bad_input_names_the_study(policy, collate, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"Study x: Image .*a\.png is not an image"):
        collate([Study("x", (View(tmp_path / "a.png"),), "")])
    with pytest.raises(ValueError, match=r"prompt of study bb has .* more than max_prompt_length 20"):
        StudyCollator(policy.processor, "Report:", max_prompt_length=20)(
            [study("a", (112, 112)), study("bb", (112, 112), (112, 112))]
        )
