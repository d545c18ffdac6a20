"""Image augmentation: by hand, on patches as on whole images, seeded, and only in training."""

import dataclasses

import lightning as L
import numpy as np
import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.images.augment import Augmentation, augmented, from_patches, to_patches
from mrg.datamodules.study import Study, View
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.vllm_servers import Servers
from mrg.modules.sft import SFTModule
from tests.callbacks.resuming import Stop, differences, fit, newest
from tests.family_checkpoints import save_checkpoint
from tests.modules.test_grpo import SETTINGS, FixedData, trainer
from tests.nested import nested

NOTHING = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "brightness": 0.0, "contrast": 0.0}


@pytest.fixture
def policy_folder(policy, tmp_path):
    policy.save(tmp_path / "policy")
    return str(tmp_path / "policy")


def changed(image, seed=0, **limits):
    return Augmentation(**{**NOTHING, **limits}).images(image, torch.Generator().manual_seed(seed))


def draws(count, seed=0):
    return 2 * torch.rand(count, 6, generator=torch.Generator().manual_seed(seed)) - 1


def test_nothing_is_changed_without_limits():
    image = torch.rand(3, 3, 20, 28)
    assert torch.allclose(changed(image), image, atol=1e-5)


def test_brightness_and_contrast_by_hand():
    image = torch.rand(4, 1, 5, 5)
    light, contrast = draws(4)[:, 4], draws(4)[:, 5]
    expected = image * (1 + 0.3 * contrast)[:, None, None, None] + (0.2 * light)[:, None, None, None]
    assert torch.allclose(changed(image, brightness=0.2, contrast=0.3), expected.clamp(0, 1), atol=1e-5)


def test_a_shift_moves_the_image_by_its_share_of_the_size():
    image = torch.zeros(64, 1, 21, 21)
    image[:, :, 10, 10] = 1
    moved = changed(image, shift=0.25)
    right, down = draws(64)[:, 2] * 0.25 * 21, draws(64)[:, 3] * 0.25 * 21
    weights = moved / moved.sum((1, 2, 3), keepdim=True)
    places = torch.arange(21.0)
    assert torch.allclose((weights.sum((1, 2)) * places).sum(1), 10 - right, atol=1e-3)
    assert torch.allclose((weights.sum((1, 3)) * places).sum(1), 10 - down, atol=1e-3)


def test_a_rotation_keeps_angles_where_an_image_is_not_square():
    """Two points at a right angle about the centre stay at a right angle and at their distance."""
    image = torch.zeros(16, 2, 41, 81)
    image[:, 0, 20, 52:55] = image[:, 1, 32:35, 40] = 1
    moved = changed(image, rotation=90.0)
    rows, columns = torch.arange(41.0) - 20, torch.arange(81.0) - 40
    weights = moved / moved.sum((2, 3), keepdim=True)
    x, y = (weights.sum(2) * columns).sum(2), (weights.sum(3) * rows).sum(2)
    assert torch.allclose((x**2 + y**2).sqrt(), torch.full((16, 2), 13.0), atol=0.15)
    assert torch.allclose(x[:, 0] * x[:, 1] + y[:, 0] * y[:, 1], torch.zeros(16), atol=3)
    # Never mirrored: the second point stays a quarter turn ahead of the first.
    assert (x[:, 0] * y[:, 1] - y[:, 0] * x[:, 1] > 160).all()


def test_patches_and_images_are_the_same(batch, policy):
    processor = policy.processor.image_processor
    shape = (int(processor.temporal_patch_size), int(processor.patch_size), int(processor.merge_size))
    first = batch.pixel_values[: int(batch.image_grid_thw[0].prod())]
    _, rows, columns = batch.image_grid_thw[0].tolist()
    image = from_patches(first, rows, columns, *shape)
    assert image.shape == (1, 3, rows * shape[1], columns * shape[1])
    assert torch.equal(to_patches(image, *shape), first)
    std, mean = (torch.tensor(x)[:, None, None] for x in (processor.image_std, processor.image_mean))
    pixels = ((image[0] * std + mean) * 255).round().permute(1, 2, 0).byte().numpy()
    again = processor(pixels, return_tensors="pt")["pixel_values"]
    assert torch.allclose(again, first, atol=1e-2)


def test_a_batch_depends_on_its_generator_alone(batch, policy):
    def once(seed):
        generator = torch.Generator().manual_seed(seed)
        return augmented(batch, Augmentation(), policy.processor.image_processor, generator).pixel_values

    assert torch.equal(once(0), once(0))
    assert not torch.allclose(once(0), once(1))
    assert once(0).shape == batch.pixel_values.shape


def test_training_batches_alone_are_changed(policy_folder, studies):
    seen = {"train": [], "val": []}

    class Watched(SFTModule):
        def training_step(self, batch, batch_idx):
            seen["train"].append(batch)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            seen["val"].append(batch)

        def on_validation_epoch_end(self):
            pass

    module = Watched(**nested(policy=policy_folder, warmup_steps=1, **SETTINGS))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    data = FixedData(studies[:4], batch_size=2, augment=Augmentation())
    L.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **options).fit(module, data)
    collator = StudyCollator(module.policy.processor, "Report:")
    for split, same in (("train", False), ("val", True)):
        assert seen[split]
        for batch in seen[split]:
            assert torch.equal(batch.pixel_values, collator(batch.studies).pixel_values) == same
    by_study = {batch.study_id[0]: [] for batch in seen["train"]}
    for batch in seen["train"]:
        by_study[batch.study_id[0]].append(batch.pixel_values)
    assert len(seen["train"]) == 4


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_resumed_run_sees_the_same_images(policy_folder, tmp_path, kind):
    settings = {"data": {"augment": Augmentation()}}
    fit(tmp_path / "whole", kind, policy_folder, **settings)
    with pytest.raises(Stop):
        fit(tmp_path / "broken", kind, policy_folder, stop=(4, "step"), **settings)
    fit(tmp_path / "broken", kind, policy_folder, checkpoint=newest(tmp_path / "broken"), **settings)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []
    fit(tmp_path / "plain", kind, policy_folder)
    assert differences(tmp_path / "whole", tmp_path / "plain") != []


def test_no_augmentation_with_cached_embeddings(policy_folder, studies, tmp_path):
    module = SFTModule(policy=policy_folder, vision_cache=str(tmp_path / "cache"), train_vision=False, **SETTINGS)
    data = FixedData(studies[:4], batch_size=2, augment=Augmentation())
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options)
    with pytest.raises(ValueError, match=r"augment to null or model\.init_args\.vision_cache to ''"):
        trainer.fit(module, data)


def test_no_augmentation_where_an_engine_reads_the_files(policy_folder, studies):
    """It would write reports of other images than those by which their probability is computed."""
    servers = Servers(["http://127.0.0.1:9"])  # refused before anything is asked
    module = GRPOModule(**nested(policy=policy_folder, lora=LoRA(4), servers=servers, **SETTINGS))
    with pytest.raises(ValueError, match=r"sample for unchanged images: set data\.init_args\.augment to null"):
        trainer(1).fit(module, FixedData(studies[:4], augment=Augmentation()))


def test_tiles_of_an_image_are_not_moved_apart(tmp_path):
    processor = load_policy(save_checkpoint("internvl", tmp_path)).processor
    views = [View(np.zeros(shape, np.uint8)) for shape in ((56, 112), (56, 56))]
    wide, square = (StudyCollator(processor, "Report:")([Study("1", (view,), "")]) for view in views)
    assert (wide.pixel_values.ndim, len(wide.pixel_values), len(square.pixel_values)) == (4, 3, 1)
    options = Augmentation(), processor.image_processor, torch.Generator()
    with pytest.raises(ValueError, match=r"cut into tiles: set data\.init_args\.augment to null"):
        augmented(wide, *options)
    assert augmented(square, *options).pixel_values.shape == square.pixel_values.shape


@pytest.mark.parametrize("setting", [field.name for field in dataclasses.fields(Augmentation)])
def test_limits_out_of_range(setting):
    with pytest.raises(ValueError, match=rf"data\.init_args\.augment\.{setting} to be from 0 to .*, but got -1"):
        Augmentation(**{setting: -1})
