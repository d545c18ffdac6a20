import numpy as np
import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.study import ImageReadError, Study, View


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
