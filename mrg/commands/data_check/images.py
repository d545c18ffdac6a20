"""Images: which are missing, which cannot be read, how large they are, and which stand twice."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from mrg.datamodules.loading import StudyDataset
from mrg.datamodules.study import ImageReadError, Study, View

SIDE_BIN = 128
_BATCH = 32
_NUM_SIZES = 20

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes items on and shows how many of how many there were: `progress(items, description, total)`."""

Place = tuple[str, int, int]
"""A split, the study's index in it and the view's index in the study."""


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What is known of one image.

    Args:
        error: `""`, `"missing"`, or why it cannot be read.
        size: Width and height where it was read.
        digest: 16 bytes that stand for the bytes of the file, or for the pixels of an image in memory.
    """

    error: str = ""
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""


def inspect_image(view: View, read: bool = True) -> ImageFacts:
    """Look whether an image is there and, if `read`, decode it completely."""
    if isinstance(view.image, Path) and not view.image.exists():
        return ImageFacts("missing")
    if not read:
        return ImageFacts()
    try:
        size = view.load().size
        if isinstance(view.image, Path):
            with view.image.open("rb") as file:
                return ImageFacts("", size, _digest(file.read()))
        return ImageFacts("", size, _digest(np.ascontiguousarray(view.image).tobytes() + repr(size).encode()))
    except (ImageReadError, ImportError, OSError) as error:  # a format may need a package that is not installed
        return ImageFacts(" ".join(str(error).split()))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _inspect_studies(studies: list[Study]) -> list[list[ImageFacts]]:
    return [[inspect_image(view) for view in study.views] for study in studies]


def _plain(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    return items


def check_images(
    splits: Mapping[str, Sequence[Study]], read: bool = True, num_workers: int = 0, progress: Progress = _plain
) -> dict[str, Any]:
    """Look at every image of every study.

    Args:
        splits: Studies by split.
        read: Decode each image completely and compare the files' bytes; otherwise only look whether it is there.
        num_workers: Processes that read.
        progress: Shows how far it is.

    Returns:
        `missing` and `unreadable`, all of them; `sizes`, how many images have each of the commonest sizes; `side` and
        `shape`, histograms of the longer side in pixels (lower edges of bins of `SIDE_BIN`) and of width by height;
        `duplicates`, groups of images of equal bytes. The last four are empty where images were not read.
    """
    places: dict[bytes, Place] = {}
    groups: dict[bytes, list[Place]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    lists: dict[str, list[dict[str, str]]] = {"missing": [], "unreadable": []}
    num_images, in_memory = Counter[str](), 0
    for split, studies in splits.items():
        for index, (study, images) in enumerate(_inspected(split, studies, read, num_workers, progress)):
            for number, (view, facts) in enumerate(zip(study.views, images, strict=True)):
                num_images[split] += 1
                in_memory += not isinstance(view.image, Path)
                if facts.error:
                    row = {"split": split, "study": study.id, "image": name_of(view, number)}
                    kind = "missing" if facts.error == "missing" else "unreadable"
                    lists[kind].append(row if kind == "missing" else {**row, "error": facts.error})
                elif read:
                    sizes[facts.size] += 1
                    place = (split, index, number)
                    first = places.setdefault(facts.digest, place)
                    if first is not place:
                        groups.setdefault(facts.digest, [first]).append(place)
    return {
        "is_read": read,
        "num_images": dict(num_images),
        "in_memory": in_memory,
        **lists,
        **_sizes(sizes),
        "duplicates": [_group(places_of, splits) for places_of in groups.values()],
    }


def _inspected(
    split: str, studies: Sequence[Study], read: bool, num_workers: int, progress: Progress
) -> Iterator[tuple[Study, list[ImageFacts]]]:
    """Each study with what is known of its images, in the order of the split."""
    title = f"images of {split}"
    if not read:
        for study in progress(studies, title, len(studies)):
            yield study, [inspect_image(view, read=False) for view in study.views]
        return
    loader = DataLoader(
        StudyDataset(studies), batch_size=_BATCH, num_workers=num_workers if studies else 0, collate_fn=_inspect_studies
    )
    found = (images for batch in loader for images in batch)
    yield from zip(studies, progress(found, title, len(studies)), strict=True)


def name_of(view: View, number: int) -> str:
    """How to call an image: by its file, or by its number in the study."""
    return str(view.image) if isinstance(view.image, Path) else f"view {number} (in memory)"


def _sizes(sizes: Counter[tuple[int, int]]) -> dict[str, dict[str, int]]:
    side: Counter[int] = Counter()
    shape: Counter[float] = Counter()
    for (width, height), count in sizes.items():
        side[max(width, height) // SIDE_BIN * SIDE_BIN] += count
        shape[round(width / height, 1)] += count
    common = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return {
        "sizes": {f"{width}x{height}": count for (width, height), count in common[:_NUM_SIZES]},
        "side": {str(start): side[start] for start in sorted(side)},
        "shape": {f"{ratio:.1f}": shape[ratio] for ratio in sorted(shape)},
    }


def _group(places: Sequence[Place], splits: Mapping[str, Sequence[Study]]) -> dict[str, Any]:
    images = []
    for split, index, number in places:
        study = splits[split][index]
        images.append({"split": split, "study": study.id, "image": name_of(study.views[number], number)})
    return {
        "across_splits": len({split for split, _, _ in places}) > 1,
        "across_studies": len({(split, index) for split, index, _ in places}) > 1,
        "images": images,
    }
