"""Studies -> one row of image features each, for the nearest-image baseline."""

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
from mrg.datamodules.study import ImageReadError, Study, View
from mrg.modules.policy.policy import Policy


@dataclasses.dataclass
class Features:
    """B studies with what was computed of their images; it stands where a `Batch` does.

    Args:
        studies: The studies.
        values: (B, D) float32, or empty where no image was read.
        skipped: See `Batch`.
        counts: See `Batch`.
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
        """How many of its studies are scored."""
        return len(self.studies) if self.counts else 0

    def to(self, device: torch.device | str, **kwargs: Any) -> Features:
        """Move the features; Lightning calls this."""
        return dataclasses.replace(self, values=self.values.to(device, **kwargs))


def first_frontal(study: Study) -> View:
    """The first frontal view, or the first one where none is known to be frontal."""
    return next((view for view in study.views if view.position == "frontal"), study.views[0])


class PixelCollator:
    """Turns studies into grey copies of one image each, `size` by `size` pixels, less their mean.

    The cosine of two such rows is the correlation of the images: brightness and contrast do not matter.

    Args:
        size: Pixels along each side.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, studies: list[Study]) -> Features:
        """Read and scale.

        Raises:
            ImageReadError: If an image cannot be read; names the study.
        """
        return self.batch(studies, [self.read(study) for study in studies])

    def batch(self, studies: list[Study], images: Sequence[np.ndarray]) -> Features:
        """Make a batch of what `read` returned for each study."""
        return Features(studies, torch.from_numpy(np.stack(images)))

    def read(self, study: Study) -> np.ndarray:
        """Read and scale the image of a study.

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
    """Turns studies into a `Batch` of one image each, as the policy's processor makes it.

    Args:
        processor: The policy's.
    """

    def __init__(self, processor: Any) -> None:
        self.collator = StudyCollator(processor, prompt="", max_views=1)

    def __call__(self, studies: list[Study]) -> Batch:
        """See `StudyCollator`."""
        return self.batch(studies, [self.read(study) for study in studies])

    def read(self, study: Study) -> list[np.ndarray]:
        """See `StudyCollator`."""
        return self.collator.read(_of_one_view(study))

    def batch(self, studies: list[Study], images: Sequence[list[np.ndarray]]) -> Batch:
        """See `StudyCollator`."""
        return dataclasses.replace(self.collator.batch([_of_one_view(s) for s in studies], images), studies=studies)


def _of_one_view(study: Study) -> Study:
    return dataclasses.replace(study, views=(first_frontal(study),))


def tower_features(policy: Policy, batch: Batch) -> Tensor:
    """What the vision tower makes of each image, averaged over the image's tokens: (B, D) float32 of length 1.

    Args:
        policy: The policy whose tower it is.
        batch: Studies of one image each.
    """
    images, _ = policy.family.images(policy.base.model, batch)
    counts = (batch.prompt_ids == policy.base.config.image_token_id).sum(1).tolist()
    return F.normalize(torch.stack([tokens.float().mean(0) for tokens in torch.split(images, counts)]), dim=1)


def nearest(queries: Tensor, known: Tensor, block: int = 16384) -> Tensor:
    """Places (B,) of the most alike rows, the first among equals, by blocks of the known ones.

    Args:
        queries: (B, D), of length 1.
        known: (N, D), of length 1, in any precision.
        block: Rows of `known` that are in 32 bits at a time.
    """
    best = torch.full((len(queries),), -torch.inf)
    place = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(known), block):
        value, index = (queries.float() @ known[start : start + block].float().T).max(1)
        better = value > best
        best, place = torch.where(better, value, best), torch.where(better, index + start, place)
    return place


def pixel_rows(batch: Features) -> Tensor:
    """Rows (B, D) of length 1; an image of one brightness stays at 0, alike to none."""
    return F.normalize(batch.values, dim=1)
