"""Image features of studies, one row each, for the nearest-image baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mrg.datamodules.collate import Batch, Skipped, StudyCollator
from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.study import Study, View
from mrg.modules.policy.policy import Policy


@dataclasses.dataclass
class Features:
    """B studies with the features of their images, in place of a `Batch`.

    Args:
        studies: The studies.
        values: (B, D) float32 features, or empty if no images were read.
        skipped: Skipped studies, see `Batch`.
        counts: Whether the studies are scored, see `Batch`.
    """

    studies: list[Study]
    values: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    skipped: tuple[Skipped, ...] = ()
    counts: bool = True

    @property
    def target(self) -> list[str]:
        """The reference reports."""
        return [study.report for study in self.studies]

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def num_counted(self) -> int:
        """Number of studies that are scored."""
        return len(self.studies) if self.counts else 0

    def to(self, device: torch.device | str, **kwargs: Any) -> Features:
        """Move the features to a device; called by Lightning."""
        return dataclasses.replace(self, values=self.values.to(device, **kwargs))


def first_frontal(study: Study) -> View:
    """The first frontal view, or the first view if none is known to be frontal."""
    return next((view for view in study.views if view.position == "frontal"), study.views[0])


class PixelCollator:
    """Collates studies into one grey image each, resized to `size` by `size` pixels, minus its mean.

    The cosine of two rows is the correlation of the images, which does not depend on brightness and contrast.

    Args:
        size: Side of the resized image in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, studies: list[Study]) -> Features:
        """Read and resize the images of studies.

        Raises:
            ImageReadError: If an image cannot be read; names the study.
        """
        return self.batch(studies, [self.read(study) for study in studies])

    def batch(self, studies: list[Study], images: Sequence[np.ndarray]) -> Features:
        """Combine the results of `read` for each study."""
        return Features(studies, torch.from_numpy(np.stack(images)))

    def read(self, study: Study) -> np.ndarray:
        """Read and resize the image of a study.

        Raises:
            ImageReadError: If it cannot be read; names the study.
        """
        try:
            image = first_frontal(study).load()
        except ImageReadError as error:
            raise type(error)(f"Study {study.id}: {error}") from None
        small = image.convert("L").resize((self.size, self.size), Image.Resampling.BILINEAR)
        row = np.asarray(small, dtype=np.float32).ravel()
        centred: np.ndarray = row - row.mean()
        return centred


class TowerCollator:
    """Collates studies into a `Batch` with one image each.

    Args:
        processor: The policy's processor.
    """

    def __init__(self, processor: Any) -> None:
        self.collator = StudyCollator(processor, prompt="", max_views=1)

    def __call__(self, studies: list[Study]) -> Batch:
        """Read and collate studies, see `StudyCollator`."""
        return self.batch(studies, [self.read(study) for study in studies])

    def read(self, study: Study) -> list[np.ndarray]:
        """Read the image of a study, see `StudyCollator`."""
        return self.collator.read(_of_one_view(study))

    def batch(self, studies: list[Study], images: Sequence[list[np.ndarray]]) -> Batch:
        """Combine the results of `read` for each study."""
        return dataclasses.replace(self.collator.batch([_of_one_view(s) for s in studies], images), studies=studies)


def _of_one_view(study: Study) -> Study:
    return dataclasses.replace(study, views=(first_frontal(study),))


def tower_features(policy: Policy, batch: Batch) -> Tensor:
    """Mean embedding of each image, normalized to length 1: (B, D) float32."""
    images, _ = policy.family.images(policy.base.model, batch)
    counts = (batch.prompt_ids == policy.base.config.image_token_id).sum(1).tolist()
    return F.normalize(torch.stack([tokens.float().mean(0) for tokens in torch.split(images, counts)]), dim=1)


def nearest(queries: Tensor, known: Tensor, block: int = 16384) -> Tensor:
    """Indices (B,) of the most similar rows, the first among equals.

    Args:
        queries: (B, D) rows of length 1.
        known: (N, D) rows of length 1, in any precision.
        block: Number of rows of `known` that are converted to float32 at a time.
    """
    best = torch.full((len(queries),), -torch.inf)
    place = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(known), block):
        value, index = (queries.float() @ known[start : start + block].float().T).max(1)
        better = value > best
        best, place = torch.where(better, value, best), torch.where(better, index + start, place)
    return place


def pixel_rows(batch: Features) -> Tensor:
    """Features (B, D) normalized to length 1; those of a uniform image are 0, similar to none."""
    return F.normalize(batch.values, dim=1)
