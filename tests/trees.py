"""Invented studies in the published folder layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

REPORTS = ("The heart is enlarged. No pneumothorax.", "Small left pleural effusion.", "The lungs are clear.")


def write_iu_tree(root: Path, num_views: int = 1) -> dict[str, Any]:
    """Eight, two and three studies in the R2Gen layout, images of unequal sizes; returns the annotation."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {}
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
        content[split] = []
        for index in range(count):
            name = f"{split}{index}"
            (root / "images" / name).mkdir(parents=True)
            views = [f"{name}/{view}.png" for view in range(num_views)]
            for view, path in enumerate(views):
                pixels = rng.integers(0, 255, (90 + 20 * view, 80 + 10 * index), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "images" / path)
            content[split].append({"id": name, "report": REPORTS[index % 3], "image_path": views, "split": split})
    write_annotation(root, content)
    return content


def write_annotation(root: Path, content: object) -> None:
    """Replace the annotation file."""
    (root / "annotation.json").write_text(json.dumps(content))
