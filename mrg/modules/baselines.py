"""Baselines without training, in place of a model: the same predictions, results and table.

    python -m mrg test --config configs/iu.yaml --config configs/baselines/nearest_image.yaml

A policy that looks at images must beat a report that is the same for every image, and the report of the training study
with the most similar image (Boag et al., 2020: nearest neighbors come close to trained networks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.metrics.evaluation import CONSTANT_NORMAL, most_frequent_report
from mrg.metrics.labels import Labeler
from mrg.modules.base import ReportModule
from mrg.modules.image_features import (
    Features,
    PixelCollator,
    TowerCollator,
    nearest,
    pixel_rows,
    tower_features,
)
from mrg.modules.policy.load import DType, load_policy
from mrg.modules.settings import check_trainer


class Baseline(ReportModule):
    """A `ReportModule` without a policy; a subclass takes what it needs from the training split in `prepare`.

    Args:
        margin: Margin of MCCS.
        labeler: Labeler for scores; `RulesLabeler` by default.
    """

    title = "baseline"
    """Name in results.json, in place of a policy."""
    trained = False

    def __init__(self, margin: float = 0.5, labeler: Labeler | None = None) -> None:
        super().__init__(think="absent", margin=margin, labeler=labeler)
        self.source = f"baseline: {self.title}"

    def setup(self, stage: str) -> None:
        """Read the data and give the data module its collator.

        Raises:
            UserError: If it is to be trained.
        """
        if stage == "fit":
            raise UserError(f"The baseline {self.title} is not trained: run `test` or `predict`.")
        check_trainer(self.trainer, stage)
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise UserError("Expected the trainer to be given a data module (`data:` in the configuration).")
        data.setup()
        data.collator = self.collator()

    def prepare(self, data: ReportDataModule) -> None:
        """Take what is needed from the training split; the module is on its device."""

    def collator(self) -> Callable[[list[Study]], Any]:
        """Collator of studies; by default one without images."""
        return Features

    def on_validation_start(self) -> None:
        """Call `prepare`."""
        self.prepare(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_test_start(self) -> None:
        """Reset the predictions, and call `prepare`."""
        super().on_test_start()
        self.prepare(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_predict_start(self) -> None:
        """Call `prepare`."""
        self.prepare(self.trainer.datamodule)  # type: ignore[attr-defined]

    def reports(self, batch: Features) -> list[str]:
        """Reports of a batch, one per study."""
        raise NotImplementedError(f"{type(self).__name__} must define reports().")  # abstract

    def write(self, batch: Any) -> list[str]:
        """Write the completion of each study of a batch."""
        return [f"<report>{report}</report>" for report in self.reports(batch)]


class ConstantNormal(Baseline):
    """Writes a constant normal report; takes the arguments of `Baseline`."""

    title = "constant normal"

    def reports(self, batch: Features) -> list[str]:
        """The same report for every study."""
        return [CONSTANT_NORMAL] * len(batch)


class MostFrequentReport(Baseline):
    """Writes the most frequent report of the training split; takes the arguments of `Baseline`."""

    title = "most frequent report"

    def prepare(self, data: ReportDataModule) -> None:
        """Find the most frequent report.

        Raises:
            UserError: If there are no training studies.
        """
        self.report = most_frequent_report(_training(data, self.title, data.train_reports()))

    def reports(self, batch: Features) -> list[str]:
        """The same report for every study."""
        return [self.report] * len(batch)


class NearestImage(Baseline):
    """Writes the report of the training study with the most similar image, by the cosine of image features.

    One image per study is used: the first frontal one, or the first one if none is known to be frontal. Features are
    stored in 16 bits: 2 kB per training study at 32 by 32 pixels.

    Args:
        size: Side length in pixels of the grayscale copies that serve as features, after subtraction of their mean.
        tower: Hub id or folder of a policy whose vision tower computes the features, as means over image tokens. Empty
            uses pixels.
        dtype: Precision of that policy: `"auto"` takes the checkpoint's.
        max_pixels: Pixel budget of an image for that policy; 0 keeps the checkpoint's.
        margin: Margin of MCCS.
        labeler: Labeler for scores; `RulesLabeler` by default.
    """

    title = "nearest image"

    def __init__(
        self,
        size: int = 32,
        tower: str = "",
        dtype: DType = "auto",
        max_pixels: int = 0,
        margin: float = 0.5,
        labeler: Labeler | None = None,
    ) -> None:
        super().__init__(margin, labeler)
        if size < 2:
            raise UserError(f"Expected model.init_args.size to be at least 2, but got {size}.")
        self.size, self.tower = size, tower
        self.dtype_name, self.max_pixels = dtype, max_pixels
        self.source += f" by {tower}" if tower else f" of {size} x {size} pixels"
        self.known: Tensor = torch.empty(0)
        self.training_reports: list[str] = []

    def collator(self) -> Callable[[list[Study]], Any]:
        """Collator of the single image of each study; loads the policy of the tower at first."""
        if not self.tower:
            return PixelCollator(self.size)
        if not hasattr(self, "policy"):
            self.policy = load_policy(self.tower, dtype=self.dtype_name, max_pixels=self.max_pixels).eval()
            self.policy.requires_grad_(False)
        return TowerCollator(self.policy.processor)

    def prepare(self, data: ReportDataModule) -> None:
        """Compute the features of the training split.

        Raises:
            UserError: If there are no training studies.
        """
        _training(data, self.title, data.train_reports())
        self.training_reports, known = [], []
        with self.trainer.precision_plugin.forward_context():  # as in the steps, which Lightning runs in it
            for batch in data.train_in_order():
                if data.on_before_batch_transfer(batch, 0).counts:
                    known.append(self.embed(batch.to(self.device)).half().cpu())
                    self.training_reports += batch.target
        self.known = torch.cat(known)

    @torch.no_grad()
    def embed(self, batch: Any) -> Tensor:
        """(B, D) features of unit length."""
        return tower_features(self.policy, batch) if self.tower else pixel_rows(batch)

    def reports(self, batch: Features) -> list[str]:
        """Reports of the nearest training studies; of equally near ones, the first."""
        return [self.training_reports[i] for i in nearest(self.embed(batch).half().cpu(), self.known).tolist()]


def _training(data: ReportDataModule, title: str, reports: Sequence[str]) -> list[str]:
    if not reports:
        raise UserError(f"The {title} needs training studies, but {data.describe()} has none.")
    return list(reports)
