"""Cache on disk of the image embeddings of a frozen vision tower, so that an image is encoded once, not every epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.files import make_folder
from mrg.modules.policy.families import Family

Embeddings = tuple[Tensor, tuple[Tensor, ...]]
"""Image embeddings (V, D), and the deepstack embeddings, see `Prompts`."""


class VisionCache:
    """Cache with one file per image and vision tower.

    A file is named by a hash of the image's processed pixels, which depend on the pixel budget, of all weights of the
    tower and of the precision. It holds a checksum; a file that is damaged or not finite is replaced. Files are never
    removed.

    Args:
        folder: Folder with the files.
        family: The model's family.
        base: The transformers model.

    Raises:
        ValueError: If the folder cannot be created.
    """

    def __init__(self, folder: Path, family: Family, base: Any) -> None:
        self.folder, self.family, self.base = folder, family, base
        make_folder(folder, "model.init_args.vision_cache")
        digest = hashlib.sha256()
        for name in family.vision:
            for key, value in getattr(base, name).state_dict().items():
                _update(digest, key, value)
        self.tower = digest.digest()

    def images(self, batch: Batch) -> Embeddings:
        """Image embeddings as in `Family.images`; only images without a file are encoded."""
        units, sizes = self._units(batch)
        grids: list[Any] = [()] * len(units) if batch.image_grid_thw is None else batch.image_grid_thw.tolist()
        files = [self.folder / f"{self._key(unit, grid)}.pt" for unit, grid in zip(units, grids, strict=True)]
        found: list[list[Tensor] | None] = [_load(file) for file in files]
        missing = [i for i, parts in enumerate(found) if parts is None]
        if missing:
            grid = None if batch.image_grid_thw is None else batch.image_grid_thw[missing]
            some = torch.cat([units[i] for i in missing])
            image, deepstack = self.family.images(
                self.base, dataclasses.replace(batch, pixel_values=some, image_grid_thw=grid)
            )
            counts = [sizes[i] for i in missing] if sizes else [len(image) // len(missing)] * len(missing)
            layers = [torch.split(layer, counts) for layer in (image, *deepstack)]
            for place, i in enumerate(missing):
                found[i] = parts = [layer[place].clone() for layer in layers]
                _save(files[i], parts)
        device = batch.pixel_values.device
        rows = [[part.to(device) for part in parts] for parts in found if parts is not None]
        image, *deepstack_rows = (torch.cat(list(layer)) for layer in zip(*rows, strict=True))
        return image, tuple(deepstack_rows)

    def _units(self, batch: Batch) -> tuple[list[Tensor], list[int]]:
        """Pixels of each image or tile, and its number of tokens if that differs between images."""
        if batch.image_grid_thw is None:
            return list(batch.pixel_values.split(1)), []
        patches = batch.image_grid_thw.prod(1).tolist()
        merged = self.base.visual.spatial_merge_size**2
        return list(torch.split(batch.pixel_values, patches)), [count // merged for count in patches]

    def _key(self, unit: Tensor, grid: Any) -> str:
        # The precision of autocast is not a property of the weights.
        kind = unit.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        pixels = unit.detach().cpu().float().contiguous().numpy().tobytes()
        shape = f"{tuple(unit.shape)} {tuple(grid)} {precision}".encode()
        return hashlib.sha256(self.tower + shape + pixels).hexdigest()


def _update(digest: Any, name: str, value: Tensor) -> None:
    """Add name, type, shape and all bytes of a tensor to a hash."""
    digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _checksum(file: Path, parts: list[Tensor]) -> str:
    """Hash of the content of a file and of its name, so that no file answers for another one."""
    digest = hashlib.sha256(file.name.encode())
    for number, part in enumerate(parts):
        _update(digest, str(number), part)
    return digest.hexdigest()


def _load(file: Path) -> list[Tensor] | None:
    """The embeddings in a file; None if it is missing, damaged or not finite, so that it will be replaced."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        parts: list[Tensor] = content["parts"]
        intact = content["checksum"] == _checksum(file, parts) and all(bool(part.isfinite().all()) for part in parts)
    except Exception:  # a damaged pickle raises nearly any error
        return None
    return parts if intact else None


def _save(file: Path, parts: list[Tensor]) -> None:
    # Ranks may write the same file at once: each writes a temporary file of its own, and the last one wins.
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    parts = [part.detach().cpu() for part in parts]
    torch.save({"parts": parts, "checksum": _checksum(file, parts)}, temporary)
    temporary.replace(file)
