"""Image preprocessing of a policy: read and resize each view, then normalize the batch.

Reading and resizing are slow and end in 8-bit pixels, which can be cached on disk (`cache.py`). The result of both
steps equals that of the image processor bit for bit, as a test checks. It takes less time because a grey image stays
one channel, and because 256 values are normalized instead of each pixel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrg.datamodules.errors import ImageReadError
from mrg.datamodules.images.cache import PixelCache
from mrg.datamodules.study import View
from mrg.errors import UserError

_DECODING = 1
"""To be increased when `read.py` or `dicom.py` decode a file differently, so that cached pixels are not used."""


class Pixels:
    """Preprocessing for image processors with one image size.

    Args:
        image_processor: Image processor of the policy.
        max_study_pixels: Must be 0; images of one size have no pixel budget.
        cache: Cache of resized images; None for none.

    Raises:
        UserError: If there is a pixel budget.
    """

    def __init__(self, image_processor: Any, max_study_pixels: int = 0, cache: PixelCache | None = None) -> None:
        if max_study_pixels:
            raise UserError("This policy's images have one size: set model.init_args.max_study_pixels to 0.")
        self.image_processor, self.cache = image_processor, cache

    def read(self, view: View, num_views: int) -> np.ndarray:
        """Read and resize a view of a study.

        Returns:
            (H, W) or (H, W, 3) uint8.

        Raises:
            ImageReadError: If it cannot be read or resized.
        """
        if self.cache is None or isinstance(view.image, np.ndarray):
            return self.resize(view, num_views)
        return self.cache.get(view.image, self.settings(num_views), lambda: self.resize(view, num_views))

    def settings(self, num_views: int) -> str:
        """Everything except the file on which its pixels depend."""
        import PIL
        import transformers

        known = [_DECODING, PIL.__version__, transformers.__version__, type(self.image_processor).__name__]
        return json.dumps([*known, self.image_processor.to_dict()], sort_keys=True, default=str)

    def resize(self, view: View, num_views: int) -> np.ndarray:
        """The processor's output for a view before normalization; see `read`."""
        made = self.image_processor(view.load(), do_rescale=False, do_normalize=False, return_tensors="np")
        pixels = np.moveaxis(np.asarray(made["pixel_values"])[0], 0, -1)
        return _one_channel(pixels.astype(np.uint8))

    def encode(self, processor: Any, images: Sequence[Sequence[np.ndarray]], prompts: list[str], **text: Any) -> Any:
        """Normalize the images and tokenize the prompts.

        Args:
            processor: Processor of the policy.
            images: For each study, what `read` returned for its views.
            prompts: Prompts with one image placeholder per view.
            **text: Further arguments of the tokenizer.
        """
        ready = {"do_resize": False, "do_center_crop": False}
        colour = [[p if p.ndim == 3 else np.stack([p] * 3, -1) for p in views] for views in images]
        return processor(images=colour, text=prompts, **ready, **text)


class Tiles(Pixels):
    """Preprocessing for image processors that cut images into tiles; views stay whole until the batch is made.

    Args:
        image_processor: Image processor of the policy.
        max_study_pixels: Must be 0; `max_pixels` sets the number of tiles per image.
        cache: Must be None; tiles are not cached.

    Raises:
        UserError: If there is a pixel budget per study, or a cache.
    """

    def __init__(self, image_processor: Any, max_study_pixels: int = 0, cache: PixelCache | None = None) -> None:
        for name, value, least in (("max_study_pixels", max_study_pixels, "0"), ("pixel_cache", cache, "''")):
            if value:
                raise UserError(f"This policy's images are cut into tiles: set model.init_args.{name} to {least}.")
        super().__init__(image_processor)

    def resize(self, view: View, num_views: int) -> np.ndarray:
        """The whole view as RGB."""
        return np.asarray(view.load())

    def encode(self, processor: Any, images: Sequence[Sequence[np.ndarray]], prompts: list[str], **text: Any) -> Any:
        """Tile and normalize the images and tokenize the prompts; see `Pixels`."""
        whole = [[Image.fromarray(pixels) for pixels in views] for views in images]
        return processor(images=whole, text=prompts, **text)


class Patches(Pixels):
    """Preprocessing for images of any size in patches, as in Qwen-VL.

    Args:
        image_processor: Image processor of the policy.
        max_study_pixels: Pixel budget per study, divided equally among its views; 0 for none.
        cache: Cache of resized images; None for none.

    Raises:
        UserError: If the budget is smaller than one image token.
    """

    def __init__(self, image_processor: Any, max_study_pixels: int = 0, cache: PixelCache | None = None) -> None:
        super().__init__(image_processor, 0, cache)
        self.max_study_pixels = max_study_pixels
        self.patch, self.merge = int(image_processor.patch_size), int(image_processor.merge_size)
        if 0 < max_study_pixels < self.square**2:
            raise UserError(
                f"Expected model.init_args.max_study_pixels to be 0 or at least {self.square**2}, the {self.square} x "
                f"{self.square} pixels of one image token, but got {max_study_pixels}."
            )
        # (3, 256): the processor's own output for each grey value and channel.
        values = np.tile(np.arange(256, dtype=np.uint8), (3, 1, 1))
        if image_processor.do_rescale:
            values = image_processor.rescale(values, image_processor.rescale_factor)
        if image_processor.do_normalize:
            values = image_processor.normalize(values, image_processor.image_mean, image_processor.image_std)
        self.table = np.asarray(values, dtype=np.float32)[:, 0]

    @property
    def square(self) -> int:
        """Side of one image token in pixels."""
        return self.patch * self.merge

    def limits(self, num_views: int) -> tuple[int, int]:
        """Minimum and maximum number of pixels of a view of a study with `num_views` views."""
        size = self.image_processor.size
        least, most = int(size["shortest_edge"]), int(size["longest_edge"])
        if self.max_study_pixels:
            most = min(most, self.max_study_pixels // num_views)
        return min(least, most), most

    def settings(self, num_views: int) -> str:
        """Everything except the file on which its pixels depend, limits included."""
        return f"{super().settings(num_views)} {self.limits(num_views)}"

    def resize(self, view: View, num_views: int) -> np.ndarray:
        """Resize to multiples of a token's side within the limits; a grey image stays one channel."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        image = view.read()
        least, most = self.limits(num_views)
        if most < self.square**2:
            raise UserError(
                f"model.init_args.max_study_pixels ({self.max_study_pixels}) leaves {most} pixels for each of "
                f"{num_views} views, fewer than the {self.square**2} of one image token: raise it, or lower max_views."
            )
        try:
            height, width = smart_resize(image.height, image.width, self.square, least, most)
        except ValueError:
            name = "in memory" if isinstance(view.image, np.ndarray) else str(view.image)
            raise ImageReadError(
                f"Image {name} has {image.width} x {image.height} pixels, but one side at most 200 times the other "
                "was expected; crop it."
            ) from None
        image = image.resize((width, height), self.image_processor.resample)
        return _one_channel(np.asarray(image))

    def encode(self, processor: Any, images: Sequence[Sequence[np.ndarray]], prompts: list[str], **text: Any) -> Any:
        """Normalize the images, repeat image placeholders per token, and tokenize; see `Pixels`."""
        views = [pixels for study in images for pixels in study]
        grid = [[1, pixels.shape[0] // self.patch, pixels.shape[1] // self.patch] for pixels in views]
        counts = iter([rows * columns // self.merge**2 for _, rows, columns in grid])
        mark = processor.image_token
        for study, prompt in zip(images, prompts, strict=True):
            if prompt.count(mark) != len(study):
                raise UserError(f"Expected a prompt to contain {mark} once for each image, but got {prompt!r}.")
        parts = [re.split(f"({re.escape(mark)})", prompt) for prompt in prompts]
        filled = ["".join(part * next(counts) if part == mark else part for part in row) for row in parts]
        encoded = processor.tokenizer(filled, **text)
        encoded["pixel_values"] = self.patches(views)
        encoded["image_grid_thw"] = torch.tensor(grid, dtype=torch.int64).view(-1, 3)
        return encoded

    def patches(self, views: Sequence[np.ndarray]) -> Tensor:
        """(sum of patches, 3 * frames * patch * patch) float32, in the order in which patches are merged."""
        frames, side, merge = int(self.image_processor.temporal_patch_size), self.patch, self.merge
        sizes = [pixels.shape[0] * pixels.shape[1] // side**2 for pixels in views]
        result = np.empty((sum(sizes), 3, frames, side**2), dtype=np.float32)
        start = 0
        for pixels, size in zip(views, sizes, strict=True):
            rows, columns = pixels.shape[0] // side // merge, pixels.shape[1] // side // merge
            planes = pixels.reshape(rows, merge, side, columns, merge, side, -1).transpose(6, 0, 3, 1, 4, 2, 5)
            planes = planes.reshape(-1, size, 1, side**2)
            for channel in range(3):
                result[start : start + size, channel] = self.table[channel][planes[min(channel, len(planes) - 1)]]
            start += size
        return torch.from_numpy(result.reshape(len(result), 3 * frames * side**2))


def _one_channel(pixels: np.ndarray) -> np.ndarray:
    """One channel if all three are equal, as in grey images that are stored as RGB."""
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., 1:]).all():
        pixels = pixels[..., 0]
    return np.ascontiguousarray(pixels)


def pixels_for(processor: Any, max_study_pixels: int = 0, cache: PixelCache | None = None) -> Pixels:
    """The preprocessing for a policy's processor.

    Raises:
        UserError: If it does not support the budget or the cache.
    """
    from transformers import InternVLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image_processor = processor.image_processor
    if isinstance(image_processor, Qwen2VLImageProcessorPil):
        return Patches(image_processor, max_study_pixels, cache)
    kind = Tiles if isinstance(processor, InternVLProcessor) else Pixels
    return kind(image_processor, max_study_pixels, cache)
