"""Image embeddings of a frozen vision tower on disk, so that an image is encoded once and not once per epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.files import make_folder
from mrg.modules.policy.families import Family

Embeddings = tuple[Tensor, tuple[Tensor, ...]]
"""Of V image tokens (V, D), and what is added to them after the first layers."""


class VisionCache:
    """Keeps what a frozen tower makes of an image in a file named by the image, its size and the tower.

    An image's key is a hash of its pixels as the processor made them, which its pixel budget has shaped, and of the
    tower's weights; another image, budget, model or precision is another file. Nothing is ever removed.

    Args:
        folder: Where the files go.
        family: How the model encodes images.
        base: The model with its tower.

    Raises:
        ValueError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, family: Family, base: Any) -> None:
        self.folder, self.family, self.base = folder, family, base
        make_folder(folder, "model.init_args.vision_cache")
        digest = hashlib.sha256()
        for name in family.vision:
            for key, value in getattr(base, name).state_dict().items():
                # In float64 and on the CPU the sum does not depend on the machine's way to add.
                start = value.detach().flatten()[:1024].cpu().double()
                digest.update(f"{key} {value.dtype} {tuple(value.shape)} {start.sum().item()!r}".encode())
        self.tower = digest.digest()

    def images(self, batch: Batch) -> Embeddings:
        """See `Family.images`; only images without a file are encoded."""
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
        """Pixels of each image or tile; and how many tokens it makes where that differs."""
        if batch.image_grid_thw is None:
            return list(batch.pixel_values.split(1)), []  # type: ignore[no-untyped-call]
        patches = batch.image_grid_thw.prod(1).tolist()
        merged = self.base.visual.spatial_merge_size**2
        return list(torch.split(batch.pixel_values, patches)), [count // merged for count in patches]

    def _key(self, unit: Tensor, grid: Any) -> str:
        # What autocast computes in is not seen in the weights.
        kind = unit.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        pixels = unit.detach().cpu().float().contiguous().numpy().tobytes()
        shape = f"{tuple(unit.shape)} {tuple(grid)} {precision}".encode()
        return hashlib.sha256(self.tower + shape + pixels).hexdigest()


def _load(file: Path) -> list[Tensor] | None:
    try:
        parts: list[Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return parts
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, pickle.UnpicklingError):  # torn by a crash: made again, and written over
        return None


def _save(file: Path, parts: list[Tensor]) -> None:
    # Ranks may make the same file at once: each writes its own and the last one stays.
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    torch.save([part.detach().cpu() for part in parts], temporary)
    temporary.replace(file)
