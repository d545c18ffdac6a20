import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.images.cache import PixelCache
from mrg.datamodules.images.preprocess import Patches, Pixels, Tiles, pixels_for
from mrg.datamodules.study import Study, View
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.processor import build_processor
from tests.family_checkpoints import save_family

CORPUS = ["The heart is enlarged. No pneumothorax.", "The lungs are clear."]
SQUARE = 28
"""Pixels along each side of what becomes one image token."""


@pytest.fixture(scope="module")
def processor():
    return build_processor(CORPUS, 400, max_pixels=20 * SQUARE**2)


def picture(path: Path, height: int, width: int, colour: bool = False, seed: int = 0, bits: int = 8) -> Path:
    """A file of smooth shapes with noise, so that shrinking it has something to round."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    grey = 100 + 60 * np.sin(rows / 17) + 60 * np.cos(columns / 23) + rng.normal(0, 9, (height, width))
    pixels = np.clip(grey, 0, 255) * (257 if bits == 16 else 1)
    pixels = pixels.astype(np.uint16 if bits == 16 else np.uint8)
    if colour:
        pixels = np.stack([pixels, pixels[::-1], pixels[:, ::-1]], -1)
    Image.fromarray(pixels).save(path)
    settle(path)
    return path


def settle(path: Path) -> None:
    """Wait until a file is old enough to be kept."""
    while time.time_ns() - os.stat(path).st_ctime_ns < 60_000_000:
        time.sleep(0.01)


def study(*views: Path, name: str = "a") -> Study:
    return Study(name, tuple(View(view) for view in views), "")


def by_hand(processor, studies: list[Study], prompts: list[str]):
    """What the processor itself makes of whole images."""
    images = [[view.load() for view in study.views] for study in studies]
    return processor(images=images, text=prompts, padding=True, return_tensors="pt")


def test_bit_for_bit_what_the_processor_makes(tmp_path: Path, processor) -> None:
    files = [
        picture(tmp_path / "grey.png", 311, 457),
        picture(tmp_path / "colour.png", 240, 180, colour=True),
        picture(tmp_path / "photo.jpg", 500, 333),
        picture(tmp_path / "deep.png", 200, 320, bits=16),
        picture(tmp_path / "small.png", 20, 30),
    ]
    studies = [study(*files[:2]), study(files[2]), study(*files[3:], name="b")]
    collate = StudyCollator(processor, "Report:")
    batch = collate(studies)
    reference = by_hand(processor, studies, [collate.prompt_text(collate.content(s)) for s in studies])
    assert torch.equal(batch.pixel_values, reference["pixel_values"])
    assert torch.equal(batch.image_grid_thw, reference["image_grid_thw"])
    assert torch.equal(batch.prompt_ids, reference["input_ids"])
    assert torch.equal(batch.prompt_mask, reference["attention_mask"].bool())


@pytest.mark.parametrize("merge_size", [1, 2, 4])
@pytest.mark.parametrize("patch_size", [14, 16])
def test_for_other_patches(tmp_path: Path, merge_size: int, patch_size: int) -> None:
    processor = build_processor(CORPUS, 400, 200 * 200, merge_size, patch_size)
    collate = StudyCollator(processor, "Report:")
    one = study(picture(tmp_path / "a.png", 311, 257))
    reference = by_hand(processor, [one], [collate.prompt_text(collate.content(one))])
    batch = collate([one])
    assert torch.equal(batch.pixel_values, reference["pixel_values"])
    assert torch.equal(batch.prompt_ids, reference["input_ids"])


def has_bos(processor, prompts: list[str]) -> bool:
    bos = processor.tokenizer.bos_token
    return bos is not None and all(prompt.startswith(bos) for prompt in prompts)


@pytest.mark.parametrize("kind", ["gemma3", "llava", "llava-qwen2", "internvl"])
def test_other_families_bit_for_bit_with_and_without_a_cache(tmp_path: Path, kind: str) -> None:
    processor = load_policy(save_family(kind, tmp_path / "policy", CORPUS)).processor
    studies = [study(picture(tmp_path / "a.png", 90, 130)), study(picture(tmp_path / "b.png", 77, 60, colour=True))]
    caches = [""] if kind == "internvl" else ["", str(tmp_path / "kept"), str(tmp_path / "kept")]
    for folder in caches:
        collate = StudyCollator(processor, "Report:", pixel_cache=folder)
        prompts = [collate.prompt_text(collate.content(s)) for s in studies]
        images = [[view.load() for view in s.views] for s in studies]
        options = {"padding": True, "return_tensors": "pt", "add_special_tokens": not has_bos(processor, prompts)}
        reference = processor(images=images, text=prompts, **options)
        batch = collate(studies)
        assert torch.equal(batch.pixel_values, reference["pixel_values"])
        assert torch.equal(batch.prompt_ids, reference["input_ids"])


@pytest.mark.parametrize(
    ("kind", "message"),
    [("llava", "images have one size"), ("gemma3", "images have one size"), ("internvl", "cut into tiles")],
)
def test_a_budget_per_study_is_refused_where_it_cannot_be_kept(tmp_path: Path, kind: str, message: str) -> None:
    processor = load_policy(save_family(kind, tmp_path, CORPUS)).processor
    assert type(pixels_for(processor)) is (Tiles if kind == "internvl" else Pixels)
    with pytest.raises(ValueError, match=rf"{message}: set model\.init_args\.max_study_pixels to 0"):
        StudyCollator(processor, "Report:", max_study_pixels=100_000)
    if kind == "internvl":
        with pytest.raises(ValueError, match=r"cut into tiles: set model\.init_args\.pixel_cache to ''"):
            StudyCollator(processor, "Report:", pixel_cache=str(tmp_path / "kept"))


def tokens(collate: StudyCollator, one: Study) -> list[int]:
    """Image tokens of each view, as they stand in the prompt."""
    batch = collate([one])
    mark = collate.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    counts = (batch.image_grid_thw.prod(1) // 4).tolist()
    assert int((batch.prompt_ids == mark).sum()) == sum(counts)
    return counts


def test_views_share_a_studys_budget(tmp_path: Path, processor) -> None:
    wide, high = picture(tmp_path / "wide.png", 280, 560), picture(tmp_path / "high.png", 560, 280)
    small = picture(tmp_path / "small.png", 56, 56)

    def counts(budget: int, *views: Path) -> list[int]:
        return tokens(StudyCollator(processor, "R:", max_views=4, max_study_pixels=budget * SQUARE**2), study(*views))

    # 280 x 560 has 10 x 20 squares. max_pixels allows 20: sides shrink by sqrt(10) to 3.16 x 6.32, so 3 x 6 squares.
    assert counts(0, wide, high) == [18, 18]
    assert counts(40, wide, high) == [18, 18]  # 20 each: no change
    # 10 each: by sqrt(20) to 2.24 x 4.47, so 2 x 4.
    assert counts(20, wide, high) == [8, 8]
    assert counts(20, wide) == [18]
    # 5 each: by sqrt(40) to 1.58 x 3.16, so 1 x 3; the small view has 2 x 2 squares and keeps them.
    assert counts(20, wide, high, small, small) == [3, 3, 4, 4]
    for views in ([wide], [wide, high], [wide, high, small], [wide, high, small, small]):
        assert sum(counts(20, *views)) <= 20


def test_the_views_of_a_prior_share_the_budget(tmp_path: Path, processor) -> None:
    file = picture(tmp_path / "a.png", 560, 560)
    one = Study("a", (View(file),), "", prior=Study("b", (View(file), View(file)), "Clear."))
    options = {"max_views": 2, "max_study_pixels": 27 * SQUARE**2}
    assert tokens(StudyCollator(processor, "R:", use_prior=True, **options), one) == [9, 9, 9]
    assert tokens(StudyCollator(processor, "R:", **options), one) == [16]  # max_pixels alone: 20


def test_a_budget_too_small_for_the_views_is_refused(tmp_path: Path, processor) -> None:
    with pytest.raises(ValueError, match="at least 784, the 28 x 28 pixels of one image token, but got 783"):
        StudyCollator(processor, "R:", max_study_pixels=783)
    file = picture(tmp_path / "a.png", 100, 100)
    collate = StudyCollator(processor, "R:", max_study_pixels=1000)
    assert tokens(collate, study(file)) == [1]
    with pytest.raises(ValueError, match=r"max_study_pixels \(1000\) leaves 500 pixels for each of 2 views"):
        collate([study(file, file)])


@pytest.mark.parametrize(("height", "width"), [(2000, 1000), (1000, 2000), (700, 700), (1500, 1400)])
def test_the_aspect_ratio_is_kept_to_less_than_a_square(tmp_path: Path, height: int, width: int) -> None:
    processor = build_processor(CORPUS, 400, max_pixels=512 * 512)
    file = picture(tmp_path / "a.png", height, width)
    for budget in (0, 300 * 300):
        rows, columns = Patches(processor.image_processor, budget).read(View(file), 1).shape
        # Both sides are whole squares, rounded down where the budget binds.
        scale = (rows * columns / (height * width)) ** 0.5
        assert abs(rows - height * scale) < SQUARE
        assert abs(columns - width * scale) < SQUARE


def test_left_stays_left(tmp_path: Path, processor) -> None:
    pixels = np.zeros((100, 140), dtype=np.uint8)
    pixels[:50, :70] = 250
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shrunk = Patches(processor.image_processor).read(View(tmp_path / "a.png"), 1)
    rows, columns = shrunk.shape[0] // 2, shrunk.shape[1] // 2
    quarters = [shrunk[:rows, :columns], shrunk[:rows, columns:], shrunk[rows:, :columns], shrunk[rows:, columns:]]
    assert [round(float(np.median(part))) for part in quarters] == [250, 0, 0, 0]


def test_an_image_too_narrow_is_a_bad_image(tmp_path: Path, processor) -> None:
    Image.new("L", (2010, 10)).save(tmp_path / "a.png")
    with pytest.raises(ImageReadError, match=r"Study a: Image .*a\.png has 2010 x 10 pixels, .*; crop it\."):
        StudyCollator(processor, "R:")([study(tmp_path / "a.png")])


def test_a_mark_in_the_indication_is_refused(tmp_path: Path, processor) -> None:
    one = Study("a", (View(picture(tmp_path / "a.png", 50, 50)),), "", indication="<|image_pad|>")
    with pytest.raises(ValueError, match="Study a: its indication contains"):
        StudyCollator(processor, "R:", use_indication=True)([one])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded."""
    import mrg.datamodules.study as module

    read, files = module.read_image, []
    monkeypatch.setattr(module, "read_image", lambda path: files.append(path) or read(path))
    return files


def test_kept_pixels_are_the_same_and_not_decoded_again(tmp_path: Path, processor, counted: list[Path]) -> None:
    files = [picture(tmp_path / "a.png", 150, 200), picture(tmp_path / "b.png", 200, 150, colour=True)]
    plain = StudyCollator(processor, "R:")([study(*files)])
    counted.clear()
    for _ in range(2):  # a new collator is a new run
        collate = StudyCollator(processor, "R:", pixel_cache=str(tmp_path / "kept"))
        for _ in range(2):
            batch = collate([study(*files)])
            assert torch.equal(batch.pixel_values, plain.pixel_values)
            assert torch.equal(batch.prompt_ids, plain.prompt_ids)
    assert counted == files
    entries = [file for file in (tmp_path / "kept").rglob("*") if file.is_file()]
    grid = plain.image_grid_thw.prod(1) * 14**2
    assert sorted(file.stat().st_size - 24 for file in entries) == sorted([int(grid[0]), 3 * int(grid[1])])


@pytest.mark.parametrize("kind", ["tiny", "llava"])
def test_grey_that_is_stored_as_colour_is_kept_as_one_channel(tmp_path: Path, processor, kind: str) -> None:
    if kind == "llava":
        processor = load_policy(save_family(kind, tmp_path / "policy", CORPUS)).processor
    grey = picture(tmp_path / "grey.png", 100, 120)
    Image.open(grey).convert("RGB").save(tmp_path / "colour.png")
    settle(tmp_path / "colour.png")
    collate = StudyCollator(processor, "R:", pixel_cache=str(tmp_path / "kept"))
    one, two = ([collate([study(file)]).pixel_values for _ in range(2)] for file in
                (grey, tmp_path / "colour.png"))  # fmt: skip
    assert all(torch.equal(values, one[0]) for values in (*one, *two))
    assert len({file.stat().st_size for file in (tmp_path / "kept").rglob("*") if file.is_file()}) == 1
    assert collate.pixels.read(View(tmp_path / "colour.png"), 1).ndim == 2


def test_a_changed_image_is_read_again(tmp_path: Path, processor, counted: list[Path]) -> None:
    file = tmp_path / "a.bmp"
    collate = StudyCollator(processor, "R:", pixel_cache=str(tmp_path / "kept"))
    values = []
    for seed in (0, 1):
        picture(file, 100, 100, seed=seed)
        os.utime(file, ns=(1, 1))  # same size, and the same time as a copying program may set it
        settle(file)
        values += [collate([study(file)]).pixel_values for _ in range(2)]
    assert len(counted) == 2
    assert torch.equal(values[2], StudyCollator(processor, "R:")([study(file)]).pixel_values)
    assert not torch.equal(values[0], values[2])


def test_a_file_just_written_is_not_kept(tmp_path: Path) -> None:
    cache, file = PixelCache(tmp_path / "kept"), tmp_path / "a"
    file.write_bytes(b"1")
    future = np.zeros((2, 2), dtype=np.uint8)
    os.utime(file)
    assert (cache.get(file, "", lambda: future) == future).all()
    settled = not list((tmp_path / "kept").rglob("*/*"))
    slow = time.time_ns() - os.stat(file).st_ctime_ns > 50_000_000  # a loaded machine may have taken longer
    assert settled or slow


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path) -> None:
    cache, file = PixelCache(tmp_path / "kept"), picture(tmp_path / "a.png", 9, 9)

    def make() -> np.ndarray:
        file.write_bytes(b"another")
        return np.zeros((2, 2), dtype=np.uint8)

    cache.get(file, "", make)
    assert not list((tmp_path / "kept").rglob("*/*"))


def test_other_settings_are_other_entries(tmp_path: Path, counted: list[Path]) -> None:
    file = picture(tmp_path / "a.png", 300, 300)
    settings = [
        {"max_pixels": 100 * 100},
        {"max_pixels": 200 * 200},
        {"max_pixels": 200 * 200, "patch_size": 16},
        {"max_pixels": 200 * 200, "merge_size": 1},
    ]
    collators = []
    for setting in settings:
        processor = build_processor(CORPUS, 400, **setting)
        collators += [StudyCollator(processor, "R:", pixel_cache=str(tmp_path / "kept"), max_study_pixels=n)
                      for n in (0, 90 * 90)]  # fmt: skip
    resampled = build_processor(CORPUS, 400, 100 * 100)
    resampled.image_processor.resample = 2
    collators.append(StudyCollator(resampled, "R:", pixel_cache=str(tmp_path / "kept")))
    for collate in collators * 2:
        expected = Patches(collate.pixels.image_processor, collate.pixels.max_study_pixels)
        assert np.array_equal(collate.pixels.read(View(file), 1), expected.read(View(file), 1))
    assert len(counted) == len(collators) * (1 + 2)


@pytest.mark.parametrize("damage", ["empty", "short", "long", "bit", "header", "shape"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, counted: list[Path], processor, damage: str) -> None:
    file = picture(tmp_path / "a.png", 100, 100)
    collate = StudyCollator(processor, "R:", pixel_cache=str(tmp_path / "kept"))
    whole = collate([study(file)]).pixel_values
    (entry,) = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    content = bytearray(entry.read_bytes())
    if damage == "bit":
        content[1000] ^= 4
    elif damage == "shape":
        content[8:16] = content[12:16] + content[8:12] if content[8:12] != content[12:16] else b"\0" * 8
    elif damage == "header":
        content[0] ^= 1
    content = {"empty": b"", "short": content[:-1], "long": content + b"x"}.get(damage, content)
    entry.write_bytes(content)
    assert torch.equal(collate([study(file)]).pixel_values, whole)
    assert len(counted) == 2
    assert torch.equal(collate([study(file)]).pixel_values, whole)
    assert len(counted) == 2


def test_a_bad_image_is_not_kept_and_says_what_it_always_says(tmp_path: Path, processor) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    settle(tmp_path / "a.png")
    collate = StudyCollator(processor, "R:", pixel_cache=str(tmp_path / "kept"))
    for _ in range(2):
        with pytest.raises(ImageReadError, match=r"Study a: Image .*a\.png is not an image of a known format"):
            collate([study(tmp_path / "a.png")])
    with pytest.raises(ImageReadError, match=r"b\.png does not exist"):
        collate([study(tmp_path / "b.png")])


def test_a_folder_that_cannot_be_made(tmp_path: Path, processor) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be created \(.*\): check model\.init_args\.pixel_cache"):
        StudyCollator(processor, "R:", pixel_cache=str(tmp_path / "file" / "kept"))


def test_a_full_disk_is_said(tmp_path: Path, processor, monkeypatch: pytest.MonkeyPatch) -> None:
    file = picture(tmp_path / "a.png", 100, 100)
    collate = StudyCollator(processor, "R:", pixel_cache=str(tmp_path / "kept"))

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\): free disk space"):
        collate([study(file)])
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]


def _many(folder: str, files: list[Path], seed: int) -> list[bytes]:
    cache = PixelCache(Path(folder))
    order = np.random.default_rng(seed).permutation(len(files) * 5) % len(files)
    return [cache.get(files[i], "", lambda i=i: np.full((40, 40), i, dtype=np.uint8)).tobytes() == bytes([i]) * 1600
            for i in order]  # fmt: skip


def test_several_workers_share_a_folder(tmp_path: Path) -> None:
    import multiprocessing

    files = [tmp_path / f"{i}" for i in range(6)]
    for file in files:
        file.write_bytes(b"x")
        settle(file)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = pool.starmap(_many, [(str(tmp_path / "kept"), files, seed) for seed in range(4)])
    assert all(all(row) for row in results)
    assert len([path for path in (tmp_path / "kept").rglob("*") if path.is_file()]) == len(files)


def test_pixels_in_memory_are_not_kept(tmp_path: Path, processor) -> None:
    collate = StudyCollator(processor, "R:", pixel_cache=str(tmp_path / "kept"))
    collate([Study("a", (View(np.zeros((60, 60), dtype=np.uint8)),), "")])
    assert not list((tmp_path / "kept").iterdir())
