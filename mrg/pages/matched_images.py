"""Image files of a folder, matched to studies by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from mrg.datamodules.errors import DataNotFoundError
from mrg.datamodules.images.read import SUFFIXES
from mrg.datamodules.study import View, to_position
from mrg.errors import UserError
from mrg.log import log
from mrg.metrics.predictions import some

_POSITIONS = ("frontal", "lateral", "pa", "ap")


def match_images(folder: Path, ids: Collection[str]) -> dict[str, tuple[View, ...]]:
    """Find the images of studies in a folder and its subfolders.

    An image belongs to the study whose id is, tried in this order, its path, its name, the name of a folder that it
    lies in (the innermost first), or the start of its name up to one of `_`, `-`, `.` and a space (the longest first):
    `CXR1_frontal.png` belongs to `CXR1`.

    Args:
        folder: Folder of the images.
        ids: Ids of the studies.

    Returns:
        Study id -> its images by name, with a position where the name holds frontal, lateral, PA or AP.

    Raises:
        DataNotFoundError: If there is no such folder, or it holds no image.
        UserError: If no image matches an id.
    """
    if not folder.is_dir():
        raise DataNotFoundError(f"There is no folder {folder}: pass the folder of the images by --images.")
    files = sorted((file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES), key=_natural)
    if not files:
        raise DataNotFoundError(f"Folder {folder} and its subfolders hold no image ({', '.join(SUFFIXES)}).")
    known, found, unmatched = set(ids), defaultdict(list), []
    for file in files:
        name = next((name for name in _candidates(file.relative_to(folder), file) if name in known), None)
        if name is None:
            unmatched.append(file.relative_to(folder).as_posix())
        else:
            found[name].append(View(file, _position(file.stem)))
    if not found:
        raise UserError(
            f"None of the {len(files):,} images in {folder} matches a study: expected the id ({some(list(ids), 3)}) to "
            f"be the name of an image, its start, or the name of its folder, but the images are {some(unmatched, 3)}."
        )
    if unmatched:
        log.warning(f"{len(unmatched):,} of {len(files):,} images in {folder} match no id: {some(unmatched, 3)}.")
    if without := [name for name in ids if name not in found]:
        log.warning(f"{len(without):,} of {len(known):,} studies have no image in {folder}: {some(without, 3)}.")
    return {name: tuple(views) for name, views in found.items()}


def _candidates(path: Path, file: Path) -> Iterator[str]:
    """Ids that an image may belong to, the most specific one first."""
    yield from (str(file), path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem)
    for parent in list(path.parents)[:-1]:
        yield from (parent.as_posix(), parent.name)
    for cut in reversed([match.start() for match in re.finditer(r"[_\-. ]", path.stem)]):
        yield path.stem[:cut]


def _position(stem: str) -> str:
    words = re.split(r"[^a-z]+", stem.lower())
    return next((to_position(word) for word in words if word in _POSITIONS), "")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which `2.png` precedes `10.png`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.as_posix())]
