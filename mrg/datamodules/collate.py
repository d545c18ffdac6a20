"""list[Study] -> Batch: every image is read and preprocessed exactly once, whatever the group size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrg.datamodules.images.cache import PixelCache
from mrg.datamodules.images.preprocess import pixels_for
from mrg.datamodules.images.read import ImageReadError
from mrg.datamodules.study import Study, View
from mrg.errors import UserError

THINK_PROMPT = (
    "Write the findings section of the radiology report for this chest X-ray study. First list what you see in "
    "<think></think>, then write the report in <report></report>."
)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A study that was left out.

    Args:
        id: Of the study.
        split: `"train"`, `"val"` or `"test"`.
        reason: One line that names the file.
    """

    id: str
    split: str
    reason: str


@dataclasses.dataclass
class Batch:
    """B studies with V views each.

    Args:
        pixel_values: All images as the image processor makes them: (sum of patches, patch size), or images of one size.
        image_grid_thw: (sum of views, 3): frames, patch rows and patch columns of each image; None if of one size.
        prompt_ids: (B, P) int64, padded on the left.
        prompt_mask: (B, P) bool, True at real tokens.
        studies: The studies themselves, for ids and file names.
        contents: For each study the content of its chat message: marks of images, and text.
        views: For each study the views of its image marks, in their order.
        skipped: The studies that were left out on the way.
        counts: False where the batch is computed only because all ranks must do the same: its studies stand in for
            some that were left out, or are those of another batch.
    """

    pixel_values: Tensor
    image_grid_thw: Tensor | None
    prompt_ids: Tensor
    prompt_mask: Tensor
    studies: list[Study]
    contents: list[list[dict[str, str]]] = dataclasses.field(default_factory=list)
    views: list[tuple[View, ...]] = dataclasses.field(default_factory=list)
    skipped: tuple[Skipped, ...] = ()
    counts: bool = True

    @property
    def target(self) -> list[str]:
        """The reference reports."""
        return [study.report for study in self.studies]

    @property
    def study_id(self) -> list[str]:
        """The ids."""
        return [study.id for study in self.studies]

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def num_counted(self) -> int:
        """How many of its studies are scored."""
        return len(self.studies) if self.counts else 0

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """Move the tensors; Lightning calls this."""
        moved = {
            field.name: getattr(self, field.name).to(device, **kwargs)
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Pin the tensors; the DataLoader calls this."""
        names = [field.name for field in dataclasses.fields(self) if isinstance(getattr(self, field.name), Tensor)]
        return dataclasses.replace(self, **{name: getattr(self, name).pin_memory() for name in names})


class StudyCollator:
    """Turns studies into a Batch with the policy's own processor and chat template.

    Args:
        processor: A still-image processor: see `mrg.modules.policy.processor`.
        prompt: The user's text after the images.
        use_indication: Put the indication before the prompt where a study has one.
        max_views: Use only the first so many views of a study.
        max_prompt_length: Longest allowed prompt in tokens, images included; 0 sets no limit.
        use_prior: Show the images and the report of an earlier study first, where a study has one; `max_views` holds
            for each of the two.
        max_study_pixels: Pixel budget of a study, of which each of its views gets the same share; 0 sets none. Only
            where images may have any size.
        pixel_cache: Folder in which shrunk pixels are kept, see `PixelCache`; empty keeps none.

    Raises:
        ValueError: If the processor takes no budget or no cache and there is one, or the folder cannot be made.
    """

    def __init__(
        self,
        processor: Any,
        prompt: str,
        use_indication: bool = False,
        max_views: int = 2,
        max_prompt_length: int = 0,
        use_prior: bool = False,
        max_study_pixels: int = 0,
        pixel_cache: str = "",
    ) -> None:
        cache = PixelCache(Path(pixel_cache).expanduser()) if pixel_cache else None
        self.pixels = pixels_for(processor, max_study_pixels, cache)
        self.processor = processor
        self.prompt = prompt
        self.use_indication = use_indication
        self.max_views = max_views
        self.max_prompt_length = max_prompt_length
        self.use_prior = use_prior

    def views(self, study: Study) -> tuple[View, ...]:
        """The views of a study as the policy sees them, those of its prior first."""
        earlier = study.prior.views[: self.max_views] if self.use_prior and study.prior else ()
        return earlier + study.views[: self.max_views]

    def content(self, study: Study) -> list[dict[str, str]]:
        """The parts of the chat message: one image mark per view, then the text."""
        text = self.prompt
        if self.use_indication and study.indication:
            text = f"Indication: {study.indication}\n{text}"
        num_views = min(len(study.views), self.max_views)
        if not (self.use_prior and study.prior):
            return [{"type": "image"}] * num_views + [{"type": "text", "text": text}]
        num_earlier = min(len(study.prior.views), self.max_views)
        # Numbers as well as places: some chat templates move all images to the front.
        earlier = f"{_images(1, num_earlier)}, of an earlier study of this patient:\n"
        report = f"\nReport of the earlier study: {study.prior.report}" if study.prior.report else ""
        current = f"{report}\n{_images(num_earlier + 1, num_views)}, of the current study:\n"
        return [
            {"type": "text", "text": earlier},
            *[{"type": "image"}] * num_earlier,
            {"type": "text", "text": current},
            *[{"type": "image"}] * num_views,
            {"type": "text", "text": f"\n{text}"},
        ]

    def prompt_text(self, content: list[dict[str, str]]) -> str:
        """The chat-formatted prompt."""
        messages = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _marked(self, prompts: list[str]) -> bool:
        """Whether the chat template writes the token of the text's start, which the tokenizer must not add again."""
        start = self.processor.tokenizer.bos_token
        return start is not None and all(prompt.startswith(start) for prompt in prompts)

    def read(self, study: Study) -> list[np.ndarray]:
        """Read and shrink the views of a study.

        Raises:
            ImageReadError: If an image cannot be read; names the study.
        """
        views = self.views(study)
        try:
            return [self.pixels.read(view, len(views)) for view in views]
        except ImageReadError as error:
            raise type(error)(f"Study {study.id}: {error}") from None

    def __call__(self, studies: list[Study]) -> Batch:
        """Read and preprocess.

        Raises:
            ImageReadError: If an image cannot be read; names the study.
            ValueError: If a prompt is longer than `max_prompt_length`.
        """
        return self.batch(studies, [self.read(study) for study in studies])

    def batch(self, studies: list[Study], images: Sequence[Sequence[np.ndarray]]) -> Batch:
        """Make a batch of studies and what `read` returned for each.

        Raises:
            ValueError: If a prompt is longer than `max_prompt_length`.
        """
        contents = [self.content(study) for study in studies]
        prompts = [self.prompt_text(content) for content in contents]
        text = {"padding": True, "return_tensors": "pt", "add_special_tokens": not self._marked(prompts)}
        encoded = self.pixels.encode(self.processor, images, prompts, **text)
        prompt_mask = encoded["attention_mask"].bool()
        longest = int(prompt_mask.sum(1).max())
        if self.max_prompt_length and longest > self.max_prompt_length:
            worst = studies[int(prompt_mask.sum(1).argmax())].id
            raise UserError(
                f"The prompt of study {worst} has {longest} tokens, more than max_prompt_length "
                f"{self.max_prompt_length}: lower max_pixels or max_views, or raise the limit."
            )
        return Batch(
            pixel_values=encoded["pixel_values"],
            image_grid_thw=encoded.get("image_grid_thw"),
            prompt_ids=encoded["input_ids"],
            prompt_mask=prompt_mask,
            studies=studies,
            contents=contents,
            views=[self.views(study) for study in studies],
        )


def _images(first: int, count: int) -> str:
    return f"Image {first}" if count == 1 else f"Images {first} to {first + count - 1}"
