"""The images of a page: small JPEG inside it, as large as a budget of megabytes allows, or links."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from mrg.datamodules.study import ImageReadError, View
from mrg.errors import UserError

WAYS = ("embed", "link", "none")
SIZES = (1024, 768, 640, 512, 448, 384, 320, 256, 224, 192, 160)
_SAMPLE = 24


@dataclasses.dataclass(frozen=True)
class Pictures:
    """How a page shows images.

    Args:
        images: `"embed"` puts them into the page as JPEG, `"link"` names their files, `"none"` leaves them out.
        image_size: Longest side of an embedded image in pixels; smaller where the page would grow beyond `megabytes`.
        quality: Of the JPEG, 1 to 95.
        megabytes: Budget of all embedded images. Where not even images of 160 pixels fit, the first studies in order
            get theirs, and those of the others are linked.
    """

    images: str = "embed"
    image_size: int = 512
    quality: int = 75
    megabytes: float = 40.0

    def __post_init__(self) -> None:
        if self.images not in WAYS:
            raise UserError(f"Expected `images` of a gallery to be 'embed', 'link' or 'none', but got {self.images!r}.")
        for name, value, low, high in (("image_size", self.image_size, 16, 4096), ("quality", self.quality, 1, 95)):
            if not low <= value <= high:
                raise UserError(f"Expected `{name}` of a gallery to be from {low} to {high}, but got {value}.")
        if self.megabytes <= 0:
            raise UserError(f"Expected `megabytes` of a gallery to be above 0, but got {self.megabytes}.")


@dataclasses.dataclass(frozen=True)
class Gathered:
    """The views of all studies, ready for a page.

    Args:
        views: For each study a list of views: `position`, and `size` of an embedded one (width and height), `link` of
            a linked one, or `problem`, why there is nothing to see.
        embedded: (study, view) -> JPEG as base64.
        image_size: Longest side of the embedded images.
    """

    views: list[list[dict[str, Any]]]
    embedded: dict[tuple[int, int], str]
    image_size: int


def gather(studies: Sequence[Sequence[View]], settings: Pictures, folder: Path) -> Gathered:
    """Load, scale and encode the images of a page; one that cannot be read says so in its place.

    Args:
        studies: The views of each study; where the budget is short, the first ones are embedded.
        settings: See `Pictures`.
        folder: Of the page: links are relative to it.
    """
    if settings.images == "none":
        return Gathered([[] for _ in studies], {}, 0)
    places = [(study, view) for study, views in enumerate(studies) for view in range(len(views))]
    jobs = [studies[study][view] for study, view in places]
    found: dict[tuple[int, int], dict[str, Any]] = {}
    embedded: dict[tuple[int, int], str] = {}
    size, most = settings.image_size, 0
    if settings.images == "embed" and jobs:
        size, most = _fit(jobs, settings)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            results = pool.map(lambda view: encode(view, size, settings.quality), jobs[:most])
            for place, result in zip(places, results, strict=False):
                if isinstance(result, ImageReadError):
                    found[place] = {"problem": str(result)}
                else:
                    embedded[place], found[place] = result[0], {"size": result[1]}
    for place, view in zip(places[most:], jobs[most:], strict=True):
        found[place] = _link(view, folder)
    views = [
        [{"position": view.position, **found[study, number]} for number, view in enumerate(row)]
        for study, row in enumerate(studies)
    ]
    return Gathered(views, embedded, size)


def encode(view: View, size: int, quality: int) -> tuple[str, tuple[int, int]] | ImageReadError:
    """One view as a JPEG in base64 and its width and height, or why it cannot be read; never enlarged."""
    try:
        image = view.load()
    except ImageReadError as error:
        return error
    return _jpeg(image, size, quality)


def _jpeg(image: Image.Image, size: int, quality: int) -> tuple[str, tuple[int, int]]:
    image = image.copy()
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    if (pixels[..., :1] == pixels).all():  # a radiograph is grey: a third less to write
        image = image.convert("L")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), image.size


def _fit(views: Sequence[View], settings: Pictures) -> tuple[int, int]:
    """The longest side at which all images fit into the budget, and how many do, judged by a sample of them."""
    step = max(1, len(views) // _SAMPLE)
    sample = []
    for view in views[::step][:_SAMPLE]:
        try:
            sample.append(view.load())
        except ImageReadError:
            continue
    sizes = [settings.image_size, *(size for size in SIZES if size < settings.image_size)]
    if not sample:
        return settings.image_size, len(views)
    budget, mean = settings.megabytes * 1e6, 0.0
    for size in sizes:
        mean = sum(len(_jpeg(image, size, settings.quality)[0]) for image in sample) / len(sample)
        if mean * len(views) <= budget:
            return size, len(views)
    return sizes[-1], int(budget / mean)


def _link(view: View, folder: Path) -> dict[str, Any]:
    if not isinstance(view.image, Path):
        return {"problem": "Drawn in memory: there is no file to link to."}
    path = view.image.absolute()
    try:
        return {"link": quote(Path(os.path.relpath(path, folder.absolute())).as_posix())}
    except ValueError:  # another drive
        return {"link": path.as_uri()}
