"""Random changes of training images, on the pixels of a batch: rotation, scale, shift, brightness and contrast.

Never a flip: left and right matter in a chest X-ray. The changes are a function of (seed, rank, batch), so that a
resumed run sees the images that the uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.errors import UserError

if TYPE_CHECKING:
    from mrg.datamodules.collate import Batch


@dataclasses.dataclass
class Augmentation:
    """How far training images are changed; each amount is sampled uniformly between minus and plus its limit.

    Args:
        rotation: Degrees.
        scale: Share of the image's size.
        shift: Share of the image's size, along each axis.
        brightness: Share of the range from black to white that is added.
        contrast: Share by which differences are stretched.

    Raises:
        UserError: If a limit is out of range.
    """

    rotation: float = 10.0
    scale: float = 0.15
    shift: float = 0.1
    brightness: float = 0.08
    contrast: float = 0.15

    def __post_init__(self) -> None:
        for name, top in (("rotation", 180.0), ("scale", 1.0), ("shift", 1.0), ("brightness", 1.0), ("contrast", 1.0)):
            value = getattr(self, name)
            if not 0 <= value <= top:
                raise UserError(f"Expected data.init_args.augment.{name} to be from 0 to {top:g}, but got {value}.")

    def images(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Change each image: (V, C, H, W) in [0, 1] -> the same shape and range.

        Pixels from outside of the image are black.

        Args:
            pixels: The images.
            generator: Generator on the CPU, which is advanced equally for all images.
        """
        draws = 2 * torch.rand(len(pixels), 6, generator=generator) - 1
        angle, scale, right, down, light, contrast = draws.to(pixels.device, pixels.dtype).unbind(1)
        angle, scale = angle * math.radians(self.rotation), 1 + scale * self.scale
        height, width = pixels.shape[-2:]
        channels = pixels.shape[1]
        if channels > 1 and float((pixels - pixels[:, :1]).abs().max()) < 1e-3:
            pixels = pixels[:, :1]  # grey: one channel is as good as three, in a third of the time
        theta = torch.zeros(len(pixels), 2, 3, device=pixels.device, dtype=pixels.dtype)
        # In units of half a side: a rotation of an image that is not square needs the ratio of its sides.
        theta[:, 0, 0] = theta[:, 1, 1] = scale * angle.cos()
        theta[:, 0, 1], theta[:, 1, 0] = -scale * angle.sin() * height / width, scale * angle.sin() * width / height
        theta[:, 0, 2], theta[:, 1, 2] = 2 * self.shift * right, 2 * self.shift * down
        grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
        moved = F.grid_sample(pixels, grid, align_corners=False)
        light, contrast = light * self.brightness, 1 + contrast * self.contrast
        changed = (moved * contrast[:, None, None, None] + light[:, None, None, None]).clamp(0, 1)
        return changed.expand(-1, channels, -1, -1)


def check_readers(augmentation: Augmentation | None, module: Any) -> None:
    """Check that whatever reads the images of a training batch reads the changed ones.

    Raises:
        UserError: If embeddings are cached, or an engine samples, which reads the images from their files.
    """
    if augmentation is None:
        return
    if getattr(module, "vision_cache", None):
        raise UserError(
            "vision_cache holds embeddings of unchanged images: set data.init_args.augment to null or "
            "model.init_args.vision_cache to ''."
        )
    if getattr(getattr(module, "rollout_settings", None), "engine", None) is not None:
        raise UserError(
            "rollout.servers and rollout.colocate sample for unchanged images: set data.init_args.augment to null, or "
            "let the policy sample itself."
        )


def augmented(batch: Batch, augmentation: Augmentation, image_processor: Any, generator: torch.Generator) -> Batch:
    """A batch with changed images.

    Args:
        batch: Images of one size, or in a Qwen-VL's patches.
        augmentation: How far they are changed.
        image_processor: Image processor that made the pixels.
        generator: Generator on the CPU.

    Raises:
        UserError: If images are cut into tiles, which would be moved apart.
    """
    if not len(batch.pixel_values):
        return batch
    channels = [image_processor.image_mean, image_processor.image_std]
    mean, std = (torch.tensor(x, device=batch.pixel_values.device).view(1, 3, 1, 1) for x in channels)
    if batch.image_grid_thw is None:
        if batch.pixel_values.ndim != 4 or len(batch.pixel_values) != sum(map(len, batch.views)):
            raise UserError("This policy's images are cut into tiles: set data.init_args.augment to null.")
        pixels = augmentation.images(batch.pixel_values * std + mean, generator)
        return dataclasses.replace(batch, pixel_values=((pixels - mean) / std).to(batch.pixel_values.dtype))
    shape = (int(image_processor.temporal_patch_size), int(image_processor.patch_size), int(image_processor.merge_size))
    parts = torch.split(batch.pixel_values, batch.image_grid_thw.prod(1).tolist())
    changed = []
    for part, (_, rows, columns) in zip(parts, batch.image_grid_thw.tolist(), strict=True):
        image = augmentation.images(from_patches(part, rows, columns, *shape) * std + mean, generator)
        changed.append(to_patches((image - mean) / std, *shape))
    return dataclasses.replace(batch, pixel_values=torch.cat(changed).to(batch.pixel_values.dtype))


def from_patches(patches: Tensor, rows: int, columns: int, frames: int, side: int, merge: int) -> Tensor:
    """The image (1, 3, H, W) of a Qwen-VL's patches.

    Args:
        patches: (rows * columns, 3 * frames * side * side), see `mrg.datamodules.images.preprocess`.
        rows: Patches along the height.
        columns: Patches along the width.
        frames: Equal copies of the image in each patch.
        side: Pixels along each side of a patch.
        merge: Patches along each side of the square that becomes a token.
    """
    parts = patches.view(rows // merge, columns // merge, merge, merge, 3, frames, side, side)[..., 0, :, :]
    return parts.permute(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, rows * side, columns * side)


def to_patches(image: Tensor, frames: int, side: int, merge: int) -> Tensor:
    """The reverse of `from_patches`."""
    rows, columns = image.shape[2] // side, image.shape[3] // side
    parts = image.view(3, rows // merge, merge, side, columns // merge, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
    parts = parts[..., None, :, :].expand(*parts.shape[:5], frames, side, side)
    return parts.reshape(rows * columns, -1)
