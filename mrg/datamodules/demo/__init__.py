"""The demo's world: invented patients whose radiographs are drawn and whose reports are written, all from one seed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.demo.images import Body, frontal, lateral, sample_body
from mrg.datamodules.demo.reports import write_report
from mrg.datamodules.study import Study, View
from mrg.metrics.conditions import NEGATIVE, POSITIVE, UNCERTAIN

PREVALENCE: dict[str, float] = {
    "Enlarged Cardiomediastinum": 0.28,
    "Cardiomegaly": 0.38,
    "Lung Opacity": 0.3,
    "Lung Lesion": 0.26,
    "Edema": 0.32,
    "Consolidation": 0.3,
    "Pneumonia": 0.3,
    "Atelectasis": 0.36,
    "Pneumothorax": 0.28,
    "Pleural Effusion": 0.38,
    "Pleural Other": 0.2,
    "Fracture": 0.2,
    "Support Devices": 0.34,
}
"""Share of each condition among the patients who are not healthy, as in an intensive care unit."""


@dataclasses.dataclass(frozen=True)
class World:
    """How hard the demo is.

    Args:
        healthy: Share of patients without any finding.
        weakest: A structure's strength is uniform in [weakest, 1].
        mimic: Chance that an absent condition shows a structure all the same, so that an image alone never settles what
            its report says: readers disagree, and some know more than the image shows.
        hedge: Chance that a finding weaker than `hedged` is reported as uncertain.
        hedged: Strength below which findings are hedged.
        omission: Share of the normal statements that a report leaves out.
        lateral: Share of the studies with a second, lateral view.
    """

    healthy: float = 0.2
    weakest: float = 0.35
    mimic: float = 0.16
    hedge: float = 0.4
    hedged: float = 0.55
    omission: float = 0.08
    lateral: float = 0.3


def make_study(world: World, seed: int, split: str, index: int, image_size: int) -> Study:
    """Invent one patient: truth, then strengths, then images and report; the same arguments give the same study."""
    rng = np.random.default_rng([seed, {"train": 0, "val": 1, "test": 2}[split], index])
    healthy = rng.random() < world.healthy
    strength: dict[str, float] = {}
    classes: dict[str, int] = {}
    side: dict[str, int] = {}
    for condition, prevalence in PREVALENCE.items():
        side[condition] = int(rng.choice([-1, 1]))
        if condition in ("Pleural Effusion", "Atelectasis") and rng.random() < 0.25:
            side[condition] = 0
        present = not healthy and rng.random() < prevalence
        if present:
            strength[condition] = float(rng.uniform(world.weakest, 1))
            weak = condition != "Support Devices" and strength[condition] < world.hedged
            hedged = weak and rng.random() < world.hedge
            classes[condition] = UNCERTAIN if hedged else POSITIVE
        else:
            classes[condition] = NEGATIVE
            if condition != "Support Devices" and rng.random() < world.mimic:
                strength[condition] = float(rng.uniform(world.weakest, 1))
    report, _ = write_report(rng, classes, side, world.omission)
    body: Body = sample_body(rng)
    views = [View(frontal(rng, body, strength, side, image_size), "frontal")]
    if rng.random() < world.lateral:
        views.append(View(lateral(rng, body, strength, image_size), "lateral"))
    return Study(id=f"{split}-{index:05d}", views=tuple(views), report=report)


@functools.lru_cache(maxsize=6)
def draw_split(world: World, seed: int, split: str, count: int, image_size: int) -> tuple[Study, ...]:
    """All studies of a split; kept, because the demo's stages read the same ones."""
    return tuple(make_study(world, seed, split, index, image_size) for index in range(count))


class DemoDataModule(ReportDataModule):
    """The drawn world as a data module.

    Args:
        num_train: Training studies.
        num_val: Validation studies.
        num_test: Test studies.
        seed: Of the world; studies of different splits never coincide.
        image_size: Pixels.
        world: How hard it is.
        **kwargs: See `ReportDataModule`.
    """

    def __init__(
        self,
        num_train: int = 3000,
        num_val: int = 200,
        num_test: int = 500,
        seed: int = 0,
        image_size: int = 112,
        world: World | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sizes = {"train": num_train, "val": num_val, "test": num_test}
        self.seed, self.image_size, self.world = seed, image_size, world or World()

    def read(self) -> dict[str, list[Study]]:
        """Draw and write all studies."""
        return {
            split: list(draw_split(self.world, self.seed, split, count, self.image_size))
            for split, count in self.sizes.items()
        }
