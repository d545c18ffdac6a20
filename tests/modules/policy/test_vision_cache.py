import pytest
import torch

from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy import vision_cache
from tests.families import QWEN, family_policy, unequal_studies


def family_batch(policy):
    return StudyCollator(policy.processor, "Report:", use_indication=True)(unequal_studies())


@pytest.mark.parametrize("family", QWEN)
def test_an_image_is_encoded_once_and_kept_bit_for_bit(family, tmp_path, monkeypatch):
    policy = family_policy(family, dtype=torch.float32)
    batch = family_batch(policy)
    expected = policy.embed(batch)
    policy.keep_images(tmp_path)
    calls = []
    forward = policy.base.model.visual.forward

    def counted(pixels, *args, **kwargs):
        calls.append(len(pixels))
        return forward(pixels, *args, **kwargs)

    monkeypatch.setattr(policy.base.model.visual, "forward", counted)
    for _ in range(2):
        got = policy.embed(batch)
        # One image at a time is another order of sums than all at once.
        assert torch.allclose(got.embeds, expected.embeds, atol=1e-5)
        for a, b in zip(got.deepstack, expected.deepstack, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert calls == [len(batch.pixel_values)]
    again = policy.embed(batch)
    assert torch.equal(again.embeds, got.embeds)
    assert len(list(tmp_path.iterdir())) == len(batch.image_grid_thw)


def test_other_pixels_and_other_weights_are_other_images(tmp_path):
    policy = family_policy("qwen2_5_vl", dtype=torch.float32)
    batch = family_batch(policy)
    policy.keep_images(tmp_path)
    policy.embed(batch)
    num = len(list(tmp_path.iterdir()))
    batch.pixel_values[0, 0] += 0.5
    policy.embed(batch)
    assert len(list(tmp_path.iterdir())) == num + 1
    with torch.no_grad():
        next(policy.base.model.visual.parameters()).mul_(1.01)
    policy.keep_images(tmp_path)
    policy.embed(batch)
    assert len(list(tmp_path.iterdir())) == 2 * num + 1


def test_a_torn_file_is_made_again(tmp_path):
    policy = family_policy("qwen2_5_vl", dtype=torch.float32)
    batch = family_batch(policy)
    policy.keep_images(tmp_path)
    expected = policy.embed(batch).embeds
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:100])
    assert torch.allclose(policy.embed(batch).embeds, expected, atol=1e-5)
    assert torch.load(file, weights_only=True)


def test_a_trained_tower_keeps_nothing(tmp_path):
    with pytest.raises(ValueError, match="requires a frozen vision tower"):
        family_policy("qwen2_vl", train_vision=True).keep_images(tmp_path)


def test_another_precision_is_another_file(tmp_path):
    """Of weights, or of autocast over the same weights."""
    policy = family_policy("qwen2_5_vl", dtype=torch.float32)
    batch = family_batch(policy)
    policy.keep_images(tmp_path)
    exact = policy.embed(batch).embeds
    num = len(list(tmp_path.iterdir()))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = policy.embed(batch).embeds
    assert len(list(tmp_path.iterdir())) == 2 * num
    assert not torch.equal(exact, rounded)
    assert torch.equal(policy.embed(batch).embeds, exact)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file.cache cannot be created \(Not a directory\).*vision_cache"):
        family_policy("qwen2_5_vl").keep_images(tmp_path / "file" / "cache")


def test_all_weights_are_part_of_the_name(tmp_path):
    """Beyond the first elements of a tensor, and with equal sums."""
    policy = family_policy("qwen2_5_vl", dtype=torch.float32)
    batch = family_batch(policy)
    policy.keep_images(tmp_path)
    first = policy.embed(batch).embeds
    num = len(list(tmp_path.iterdir()))
    weight = max(policy.base.model.visual.parameters(), key=torch.numel)
    assert weight.numel() > 1024
    with torch.no_grad():
        weight.view(-1)[1024:] = weight.view(-1)[1024:].flip(0)
    policy.keep_images(tmp_path)
    assert not torch.allclose(policy.embed(batch).embeds, first)
    assert len(list(tmp_path.iterdir())) == 2 * num


def test_a_file_with_a_flipped_bit_is_made_again(tmp_path):
    policy = family_policy("qwen2_5_vl", dtype=torch.float32)
    batch = family_batch(policy)
    policy.keep_images(tmp_path)
    expected = policy.embed(batch).embeds
    file = sorted(tmp_path.iterdir())[0]
    content = file.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 40)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
        assert torch.allclose(policy.embed(batch).embeds, expected, atol=1e-5)


@pytest.mark.parametrize("damage", ["swapped", "not finite", "old form"])
def test_a_file_that_is_not_the_embedding_is_made_again(tmp_path, damage):
    policy = family_policy("qwen2_5_vl", dtype=torch.float32)
    batch = family_batch(policy)
    policy.keep_images(tmp_path)
    expected = policy.embed(batch).embeds
    one, two, *_ = sorted(tmp_path.iterdir())
    if damage == "swapped":
        one.write_bytes(two.read_bytes())
    else:
        parts = [torch.full_like(part, torch.inf) for part in torch.load(one, weights_only=True)["parts"]]
        content = {"parts": parts, "checksum": vision_cache._checksum(one, parts)}
        torch.save(content if damage == "not finite" else parts, one)
    assert torch.allclose(policy.embed(batch).embeds, expected, atol=1e-5)
