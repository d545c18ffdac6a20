"""One study: its images, its report, and the text a policy reads and writes for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from mrg.datamodules.images.read import MAX_PIXELS, ImageReadError, from_pixels, read_image

__all__ = ["MAX_PIXELS", "ImageReadError", "Study", "View"]


@dataclasses.dataclass(frozen=True)
class View:
    """One image of a study.

    Args:
        image: A file, or pixels already in memory as (H, W) or (H, W, 3) uint8.
        position: `"frontal"`, `"lateral"` or, where the source does not say, `""`.
    """

    image: Path | np.ndarray
    position: str = ""

    def load(self) -> Image.Image:
        """Read the image as RGB; see `read`."""
        return self.read().convert("RGB")

    def read(self) -> Image.Image:
        """Read the image as 8-bit grey where it is grey, else as RGB; see `mrg.datamodules.images.read.read_image`.

        Raises:
            ImageReadError: If the file is missing, cannot be decoded completely or has more than `MAX_PIXELS` pixels.
        """
        return from_pixels(self.image) if isinstance(self.image, np.ndarray) else read_image(self.image)


@dataclasses.dataclass(frozen=True)
class Study:
    """One examination: an id, its views and its reference report.

    Args:
        id: Unique within the dataset.
        views: One or more images, in the order in which the policy sees them.
        report: The reference report as written; empty only where a study is to be predicted without a reference.
        indication: Why the examination was made; empty where the source does not say.
        patient: Who was examined, where the source says; splits are made, and leakage is looked for, by patient.
        prior: An earlier study of the same patient, where the source has one and it is asked for.
    """

    id: str
    views: tuple[View, ...]
    report: str
    indication: str = ""
    patient: str = ""
    prior: Study | None = None
