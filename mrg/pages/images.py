"""Images of a page: embedded as JPEG, as large as a budget in megabytes allows, or linked."""

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

from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.study import View
from mrg.errors import UserError

MODES = ("embed", "link", "none")
SIZES = (1024, 768, 640, 512, 448, 384, 320, 256, 224, 192, 160)
_SAMPLE = 24


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How a page shows images.

    Args:
        images: `"embed"` (as JPEG inside the page), `"link"` (to their files) or `"none"`.
        image_size: Longest side of an embedded image in pixels; reduced if the images would exceed `megabytes`.
        quality: JPEG quality, 1 to 95.
        megabytes: Budget of all embedded images. If not even images of 160 pixels fit, the first studies have
            embedded images and the others links.
    """

    images: str = "embed"
    image_size: int = 1024
    quality: int = 75
    megabytes: float = 40.0

    def __post_init__(self) -> None:
        if self.images not in MODES:
            raise UserError(f"Expected `images` of a gallery to be 'embed', 'link' or 'none', but got {self.images!r}.")
        for name, value, low, high in (("image_size", self.image_size, 16, 4096), ("quality", self.quality, 1, 95)):
            if not low <= value <= high:
                raise UserError(f"Expected `{name}` of a gallery to be from {low} to {high}, but got {value}.")
        if self.megabytes <= 0:
            raise UserError(f"Expected `megabytes` of a gallery to be above 0, but got {self.megabytes}.")


@dataclasses.dataclass(frozen=True)
class PageImages:
    """Views of all studies, ready for a page.

    Args:
        views: List of views for each study: `position`, and `size` (width and height) of an embedded image, `link` to
            a linked one, or `problem`, the reason why there is no image.
        embedded: (study, view) -> JPEG as base64.
        image_size: Longest side of the embedded images.
    """

    views: list[list[dict[str, Any]]]
    embedded: dict[tuple[int, int], str]
    image_size: int


def page_images(studies: Sequence[Sequence[View]], options: ImageOptions, folder: Path) -> PageImages:
    """Load, scale and encode the images of a page; an unreadable image is replaced by the reason.

    Args:
        studies: Views of each study; if the budget is too small for all, the first ones are embedded.
        options: Form and size of the images.
        folder: Folder of the page, to which links are relative.
    """
    if options.images == "none":
        return PageImages([[] for _ in studies], {}, 0)
    places = [(study, view) for study, views in enumerate(studies) for view in range(len(views))]
    jobs = [studies[study][view] for study, view in places]
    found: dict[tuple[int, int], dict[str, Any]] = {}
    embedded: dict[tuple[int, int], str] = {}
    size, most = options.image_size, 0
    if options.images == "embed" and jobs:
        size, most = _fit(jobs, options)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            results = pool.map(lambda view: encode(view, size, options.quality), jobs[:most])
            for place, result in zip(places[:most], results, strict=True):
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
    return PageImages(views, embedded, size)


def encode(view: View, size: int, quality: int) -> tuple[str, tuple[int, int]] | ImageReadError:
    """JPEG of a view in base64 with its width and height, never enlarged, or the reason why it cannot be read."""
    try:
        image = view.load()
    except ImageReadError as error:
        return error
    return _jpeg(image, size, quality)


def _jpeg(image: Image.Image, size: int, quality: int) -> tuple[str, tuple[int, int]]:
    image = image.copy()
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    if (pixels[..., :1] == pixels).all():  # a greyscale JPEG is a third smaller
        image = image.convert("L")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), image.size


def _fit(views: Sequence[View], options: ImageOptions) -> tuple[int, int]:
    """The longest side at which the images fit into the budget, estimated from a sample, and how many of them fit."""
    step = max(1, len(views) // _SAMPLE)
    sample = []
    for view in views[::step][:_SAMPLE]:
        try:
            sample.append(view.load())
        except ImageReadError:
            continue
    sizes = [options.image_size, *(size for size in SIZES if size < options.image_size)]
    if not sample:
        return options.image_size, len(views)
    budget, mean = options.megabytes * 1e6, 0.0
    for size in sizes:
        mean = sum(len(_jpeg(image, size, options.quality)[0]) for image in sample) / len(sample)
        if mean * len(views) <= budget:
            return size, len(views)
    return sizes[-1], int(budget / mean)


def _link(view: View, folder: Path) -> dict[str, Any]:
    if not isinstance(view.image, Path):
        return {"problem": "Synthetic image: there is no file to link to."}
    path = view.image.absolute()
    try:
        return {"link": quote(Path(os.path.relpath(path, folder.absolute())).as_posix())}
    except ValueError:  # another drive
        return {"link": path.as_uri()}
