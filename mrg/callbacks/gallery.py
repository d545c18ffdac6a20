"""The run's gallery: one page with every study's images, reference, generated report and verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from mrg.callbacks.results import ResultWriter
from mrg.datamodules.own_images import ImagesDataModule
from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.files import read_lines
from mrg.modules.base import ReportModule
from mrg.pages.gallery import Gallery, of_studies
from mrg.pages.images import ImageOptions
from mrg.run.folder import PAGE, PREDICT_PAGE


class GalleryWriter(L.Callback):
    """Writes gallery.html into the run folder after `test` and `predict`, from what `ResultWriter` left there.

    After `predict` there is no reference, so the page of a run that has been tested stays: the new one is then called
    gallery-predict.html. Where `--output` names another file for the reports, the page stands beside it.

    Args:
        write: Whether to write it.
        images: `"embed"`, `"link"` or `"none"`: see `mrg.pages.images.ImageOptions`.
        image_size: Longest side of an embedded image in pixels, where `megabytes` allow.
        quality: Of the embedded JPEG.
        megabytes: Budget of the embedded images.
        max_studies: Show only so many studies, those with the lowest MCCS.
    """

    def __init__(
        self,
        write: bool = True,
        images: str = "embed",
        image_size: int = 512,
        quality: int = 75,
        megabytes: float = 40.0,
        max_studies: int = 5000,
    ) -> None:
        if max_studies < 1:
            raise UserError(f"Expected `max_studies` of a gallery to be at least 1, but got {max_studies}.")
        self.write, self.max_studies = write, max_studies
        self.image_options = ImageOptions(images, image_size, quality, megabytes)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the page of the tested studies."""
        if self.write and trainer.is_global_zero:
            folder = _writer(trainer).folder
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            rows = read_lines(folder / "predictions.jsonl")
            studies = trainer.datamodule.splits["test"]  # type: ignore[attr-defined]
            self._write(pl_module, folder / PAGE, rows, studies, results)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the page of reports without references."""
        if self.write and trainer.is_global_zero:
            writer = _writer(trainer)
            data = trainer.datamodule  # type: ignore[attr-defined]
            page = writer.folder / (PREDICT_PAGE if (writer.folder / "predictions.jsonl").exists() else PAGE)
            if isinstance(data, ImagesDataModule) and data.output:
                page = Path(data.output).with_suffix(".gallery.html")
            self._write(pl_module, page, writer.predicted, data.to_predict(), None)

    def _write(
        self,
        module: L.LightningModule,
        page: Path,
        rows: list[dict[str, Any]],
        studies: Sequence[Study],
        results: Mapping[str, Any] | None,
    ) -> None:
        name = page.resolve().parent.name if page.name in (PAGE, PREDICT_PAGE) else page.name.removesuffix(f".{PAGE}")
        assert isinstance(module, ReportModule)
        if not rows:
            return
        wanted = {row["id"] for row in rows}
        gallery = Gallery(
            {"model": rows},
            module.labeler,
            module.margin,
            **of_studies({study.id: study for study in studies if study.id in wanted}),
            max_views=module.max_views,
            results=results,
            title=f"{name}: {len(wanted):,} {'study' if len(wanted) == 1 else 'studies'}",
            max_studies=self.max_studies,
            image_options=self.image_options,
        )
        gallery.write(page)
        print(f"Gallery: {page}", flush=True)


def _writer(trainer: L.Trainer) -> ResultWriter:
    """The callback that knows where results belong; it comes first."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, ResultWriter))  # type: ignore[attr-defined]
