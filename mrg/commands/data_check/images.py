"""Statistics of images: missing, unreadable and identical ones, and their sizes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from mrg.commands.data_check.statistics import digest
from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.loading import StudyDataset
from mrg.datamodules.study import Study, View

SIDE_BIN = 128
_BATCH = 32
_NUM_SIZES = 20

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Yields items and shows progress: `progress(items, description, total)`."""

Place = tuple[str, int, int]
"""Split, index of the study in it, and index of the view in the study."""


@dataclasses.dataclass(frozen=True)
class ImageStatus:
    """Result of checking one image.

    Args:
        error: `""`, `"missing"`, or the reason why it cannot be read.
        size: Width and height, if it was read.
        digest: Hash of the file, or of the pixels of an image in memory.
    """

    error: str = ""
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""


def inspect_image(view: View, read: bool = True) -> ImageStatus:
    """Check that an image exists and, if `read`, decode it."""
    if isinstance(view.image, Path) and not view.image.exists():
        return ImageStatus("missing")
    if not read:
        return ImageStatus()
    try:
        size = view.load().size
        if isinstance(view.image, Path):
            with view.image.open("rb") as file:
                return ImageStatus("", size, digest(file.read()))
        return ImageStatus("", size, digest(np.ascontiguousarray(view.image).tobytes() + repr(size).encode()))
    except (ImageReadError, ImportError, OSError) as error:  # a format may need a package that is not installed
        return ImageStatus(" ".join(str(error).split()))


def _inspect_studies(studies: list[Study]) -> list[list[ImageStatus]]:
    return [[inspect_image(view) for view in study.views] for study in studies]


def check_images(
    splits: Mapping[str, Sequence[Study]],
    read: bool = True,
    num_workers: int = 0,
    progress: Progress = lambda items, description, total: items,
) -> dict[str, Any]:
    """Check every image of every study.

    Args:
        splits: Studies by split.
        read: Decode each image and compare the files' bytes, instead of only checking that it exists.
        num_workers: Number of processes that read images.
        progress: Wraps the images to show progress.

    Returns:
        `missing` and `unreadable`, all such images; `sizes`, numbers of images of the most frequent sizes; `side` and
        `shape`, histograms of the longer side in pixels (lower edges of bins of `SIDE_BIN`) and of width by height;
        `duplicates`, groups of identical images. The last four are empty if images were not read.
    """
    places: dict[bytes, Place] = {}
    groups: dict[bytes, list[Place]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    lists: dict[str, list[dict[str, str]]] = {"missing": [], "unreadable": []}
    num_images, in_memory = Counter[str](), 0
    for split, studies in splits.items():
        for index, (study, images) in enumerate(_inspected(split, studies, read, num_workers, progress)):
            for number, (view, status) in enumerate(zip(study.views, images, strict=True)):
                num_images[split] += 1
                in_memory += not isinstance(view.image, Path)
                if status.error:
                    row = {"split": split, "study": study.id, "image": name_of(view, number)}
                    kind = "missing" if status.error == "missing" else "unreadable"
                    lists[kind].append(row if kind == "missing" else {**row, "error": status.error})
                elif read:
                    sizes[status.size] += 1
                    place = (split, index, number)
                    first = places.setdefault(status.digest, place)
                    if first is not place:
                        groups.setdefault(status.digest, [first]).append(place)
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
) -> Iterator[tuple[Study, list[ImageStatus]]]:
    """Each study with the status of its images, in the order of the split."""
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
    """Name of an image: its file, or its number in the study."""
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
