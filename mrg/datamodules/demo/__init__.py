"""Synthetic patients for the demo: radiographs and reports, all from one seed."""

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
"""Prevalence of each condition among patients with findings, as in an intensive care unit."""


@dataclasses.dataclass(frozen=True)
class World:
    """Difficulty of the synthetic data.

    Args:
        healthy: Fraction of patients without any finding.
        weakest: Lower bound of the strength of a structure, which is uniform in [weakest, 1].
        mimic: Probability that an absent condition is visible nevertheless, so that an image does not determine its
            report: readers disagree, and some know more than the image shows.
        hedge: Probability that a finding weaker than `hedged` is reported as uncertain.
        hedged: Strength below which findings may be hedged.
        omission: Fraction of the normal statements that a report omits.
        lateral: Fraction of the studies with a second, lateral view.
    """

    healthy: float = 0.2
    weakest: float = 0.35
    mimic: float = 0.16
    hedge: float = 0.4
    hedged: float = 0.55
    omission: float = 0.08
    lateral: float = 0.3


def make_study(world: World, seed: int, split: str, index: int, image_size: int) -> Study:
    """Make a synthetic study: conditions, their strengths, then report and images. It depends only on the arguments."""
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
def make_split(world: World, seed: int, split: str, count: int, image_size: int) -> tuple[Study, ...]:
    """Make all studies of a split; cached, because all stages of the demo read them."""
    return tuple(make_study(world, seed, split, index, image_size) for index in range(count))


class DemoDataModule(ReportDataModule):
    """Data module of synthetic studies.

    Args:
        num_train: Number of training studies.
        num_val: Number of validation studies.
        num_test: Number of test studies.
        seed: Random seed; studies of different splits never coincide.
        image_size: Width and height in pixels.
        world: Difficulty of the generated data.
        **kwargs: Arguments of `ReportDataModule`.
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
        """Make all studies."""
        return {
            split: list(make_split(self.world, self.seed, split, count, self.image_size))
            for split, count in self.sizes.items()
        }
