"""Studies to a batch: every image is read and preprocessed once, whatever the group size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrg.datamodules.errors import ImageReadError, TextError
from mrg.datamodules.images.cache import PixelCache
from mrg.datamodules.images.preprocess import pixels_for
from mrg.datamodules.study import Study, View
from mrg.errors import UserError

THINK_PROMPT = (
    "Write the findings section of the radiology report for this chest X-ray study. First list what you see in "
    "<think></think>, then write the report in <report></report>."
)
TAGS = ("<think>", "</think>", "<report>", "</report>")


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A study that was skipped because an image cannot be read, or a text in its prompt is not plain.

    Args:
        id: Identifier of the study.
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
        pixel_values: Output of the image processor: (sum of patches, patch size), or images of one size.
        image_grid_thw: (sum of views, 3): frames, patch rows and patch columns of each image; None for images of one
            size.
        prompt_ids: (B, P) int64, left-padded.
        prompt_mask: (B, P) bool, True at real tokens.
        studies: The B studies, for ids and file names.
        contents: For each study, the content of its chat message: image placeholders and text.
        views: For each study, the views of its image placeholders in order.
        skipped: Studies that were skipped while the batch was made.
        counts: False if the batch is computed only so that all ranks do the same work, and is not scored.
        importance: (B,) float32 weights of the studies in training, the inverse of how often they are drawn; None if
            all are 1.
        ahead: The next batch of the epoch, on the CPU; None if it is the last, or if nobody asks for it.
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
    importance: Tensor | None = None
    ahead: Batch | None = None

    @property
    def target(self) -> list[str]:
        """The reference reports."""
        return [study.report for study in self.studies]

    @property
    def study_id(self) -> list[str]:
        """The study ids."""
        return [study.id for study in self.studies]

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def num_counted(self) -> int:
        """Number of studies that are scored."""
        return len(self.studies) if self.counts else 0

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """Move the tensors; Lightning calls this."""
        return self._map(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> Batch:
        """Pin the tensors; the DataLoader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        tensors: dict[str, Any] = {name: function(value) for name, value in values if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)


class StudyCollator:
    """Makes a batch of studies with the policy's processor and chat template.

    Args:
        processor: Still-image processor, see `mrg.modules.policy.processor`.
        prompt: User's text after the images.
        use_indication: Put the indication before the prompt if the study has one.
        max_views: Maximum number of views per study; the first ones are used.
        max_prompt_length: Maximum prompt length in tokens, including images; 0 for no limit.
        use_prior: Put the images and the report of the prior study first if there is one; `max_views` applies to each
            of the two studies.
        max_study_pixels: Pixel budget per study, divided equally among its views; 0 for none. Only for policies that
            take images of any size.
        pixel_cache: Folder that caches resized images, see `PixelCache`; empty for no cache.

    Raises:
        UserError: If the processor does not support the budget or the cache, or the folder cannot be created.
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
        self.marks = _marks(processor)
        if mark := self._mark(prompt):
            raise UserError(f"Expected model.init_args.prompt to be plain text, but it contains the token {mark!r}.")

    def _mark(self, text: str) -> str:
        """The first special token that a text contains; empty if there is none."""
        return next((mark for mark in self.marks if mark in text), "")

    def _check_text(self, study: Study) -> None:
        """Check that the texts in the prompt of a study are plain text.

        Raises:
            TextError: If one contains a special token, such as that of an image.
        """
        report = study.prior.report if self.use_prior and study.prior else ""
        for name, text in (("indication", study.indication if self.use_indication else ""), ("prior report", report)):
            if mark := self._mark(text):
                raise TextError(
                    f"Study {study.id}: its {name} contains {mark!r}, a token of the policy that marks images or turns "
                    f"and is not text: remove it, at character {text.index(mark)}."
                )

    def views(self, study: Study) -> tuple[View, ...]:
        """The views of a study in the order in which the policy sees them, those of its prior first."""
        earlier = study.prior.views[: self.max_views] if self.use_prior and study.prior else ()
        return earlier + study.views[: self.max_views]

    def content(self, study: Study) -> list[dict[str, str]]:
        """The parts of the chat message: one image placeholder per view, then the text."""
        text = self.prompt
        if self.use_indication and study.indication:
            text = f"Indication: {study.indication}\n{text}"
        num_views = min(len(study.views), self.max_views)
        if not (self.use_prior and study.prior):
            return [{"type": "image"}] * num_views + [{"type": "text", "text": text}]
        num_earlier = min(len(study.prior.views), self.max_views)
        # Images are numbered, because some chat templates move all of them to the front.
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
        """The prompt in the format of the chat template."""
        messages = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def read(self, study: Study) -> list[np.ndarray]:
        """Read and resize the views of a study.

        Raises:
            ImageReadError: If an image cannot be read, or a text in the prompt is not plain; names the study.
        """
        self._check_text(study)
        views = self.views(study)
        try:
            return [self.pixels.read(view, len(views)) for view in views]
        except ImageReadError as error:
            raise type(error)(f"Study {study.id}: {error}") from None

    def __call__(self, studies: list[Study]) -> Batch:
        """Read and preprocess.

        Raises:
            ImageReadError: If an image cannot be read; names the study.
            UserError: If a prompt is longer than `max_prompt_length`.
        """
        return self.batch(studies, [self.read(study) for study in studies])

    def batch(self, studies: list[Study], images: Sequence[Sequence[np.ndarray]]) -> Batch:
        """Make a batch of studies and what `read` returned for each.

        Raises:
            UserError: If a prompt is longer than `max_prompt_length`.
        """
        contents = [self.content(study) for study in studies]
        prompts = [self.prompt_text(content) for content in contents]
        bos = self.processor.tokenizer.bos_token
        # Some chat templates write the start token, which the tokenizer must not add again.
        has_bos = bos is not None and all(prompt.startswith(bos) for prompt in prompts)
        text = {"padding": True, "return_tensors": "pt", "add_special_tokens": not has_bos}
        encoded = self.pixels.encode(self.processor, images, prompts, **text)
        prompt_mask = encoded["attention_mask"].bool()
        longest = int(prompt_mask.sum(1).max())
        if self.max_prompt_length and longest > self.max_prompt_length:
            worst = studies[int(prompt_mask.sum(1).argmax())].id
            raise UserError(
                f"The prompt of study {worst} has {longest} tokens, more than max_prompt_length "
                f"{self.max_prompt_length}. Lower max_pixels or max_views, or raise the limit."
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


def _marks(processor: Any) -> list[str]:
    """Special tokens that would change the structure of a prompt: all but the unknown word and the format's tags."""
    tokenizer = processor.tokenizer
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {getattr(processor, name, None) for name in ("image_token", "video_token", "boi_token", "eoi_token")}
    return sorted({mark for mark in special | named if mark} - {tokenizer.unk_token, *TAGS})


def _images(first: int, count: int) -> str:
    return f"Image {first}" if count == 1 else f"Images {first} to {first + count - 1}"
