"""Seven synthetic studies in three splits, small enough to count by hand."""

from __future__ import annotations

import numpy as np

from mrg.datamodules.study import Study, View

NORMAL = "The lungs are clear."
FLUID = "Small left pleural effusion."
LARGE = "The heart is enlarged."


def view(position: str = "frontal", value: int = 0, shape: tuple[int, int] = (8, 8)) -> View:
    return View(np.full(shape, value, np.uint8), position)


def splits() -> dict[str, list[Study]]:
    front, side = view("frontal", 1), view("lateral", 2)
    return {
        "train": [
            Study("a", (front, side), NORMAL, patient="1"),
            Study("b", (side, front), NORMAL, patient="1", indication="Cough."),
            Study("c", (front,), FLUID, patient="2"),
            Study("d", (view("", 3),), " \n", patient="3"),
        ],
        "val": [Study("e", (front,), LARGE, patient="4")],
        "test": [
            Study("f", (front, side), "THE  lungs are\nclear. ", patient="2"),
            Study("g", (front,), FLUID, patient="5"),
            Study("h", (front,), LARGE + " " + FLUID, patient=""),
        ],
    }
