"""One study: its images, its report, and the text a policy reads and writes for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image


class ImageReadError(ValueError):
    """An image that is missing, truncated or not an image; the message names the file and the study."""


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
        """Read the image as RGB.

        Raises:
            ImageReadError: If the file is missing or cannot be decoded completely.
        """
        if isinstance(self.image, np.ndarray):
            return Image.fromarray(self.image).convert("RGB")
        try:
            with Image.open(self.image) as image:
                return image.convert("RGB")
        except FileNotFoundError:
            raise ImageReadError(f"Image {self.image} does not exist.") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageReadError(f"Image {self.image} cannot be read ({error}).") from None


@dataclasses.dataclass(frozen=True)
class Study:
    """One examination: an id, its views and its reference report.

    Args:
        id: Unique within the dataset.
        views: One or more images, in the order in which the policy sees them.
        report: The reference report as written; empty only where a study is to be predicted without a reference.
        indication: Why the examination was made; empty where the source does not say.
    """

    id: str
    views: tuple[View, ...]
    report: str
    indication: str = ""
