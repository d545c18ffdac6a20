"""The gallery of a run: one page with the images, reference, generated report and verdicts of every study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L

from mrg.callbacks.results import ResultWriter
from mrg.datamodules.own_images import ImagesDataModule
from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.metrics.labels import Labeler
from mrg.modules.base import ReportModule
from mrg.pages.gallery import Gallery, of_studies
from mrg.pages.images import ImageOptions
from mrg.run.folder import PAGE, PREDICT_PAGE


class GalleryWriter(L.Callback):
    """Writes gallery.html into the run folder after `test` and `predict`.

    After `predict` there are no references. If the run has been tested, its page is kept and the new one is named
    gallery-predict.html. If `--output` names another file for the reports, the page is written next to it.

    Args:
        write: Whether to write the page.
        images: Embed the images, link to their files, or show none.
        image_size: Longest side of an embedded image in pixels, unless `megabytes` requires a smaller one.
        quality: JPEG quality of embedded images.
        megabytes: Size limit of all embedded images.
        max_studies: Largest number of studies to show; those with the lowest MCCS come first.

    Raises:
        UserError: If `max_studies` is below 1, or another argument is out of range.
    """

    def __init__(
        self,
        write: bool = True,
        images: Literal["embed", "link", "none"] = "embed",
        image_size: int = 1024,
        quality: int = 75,
        megabytes: float = 40.0,
        max_studies: int = 5000,
    ) -> None:
        if max_studies < 1:
            raise UserError(f"Expected gallery.max_studies to be at least 1, but got {max_studies}.")
        self.write, self.max_studies = write, max_studies
        self.image_options = ImageOptions(images, image_size, quality, megabytes)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the page of the tested studies."""
        if self.write and trainer.is_global_zero:
            writer = _writer(trainer)
            assert writer.tested is not None
            rows, results, labeler = writer.tested
            studies = trainer.datamodule.splits["test"]  # type: ignore[attr-defined]
            self._write(pl_module, writer.folder / PAGE, rows, studies, labeler, results)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the page of reports without references."""
        if self.write and trainer.is_global_zero:
            writer = _writer(trainer)
            data = trainer.datamodule  # type: ignore[attr-defined]
            page = writer.folder / (PREDICT_PAGE if (writer.folder / "predictions.jsonl").exists() else PAGE)
            if isinstance(data, ImagesDataModule) and data.output:
                page = Path(data.output).with_suffix(".gallery.html")
            assert isinstance(pl_module, ReportModule)
            self._write(pl_module, page, writer.predicted, data.to_predict(), pl_module.labeler)

    def _write(
        self,
        module: L.LightningModule,
        page: Path,
        rows: list[dict[str, Any]],
        studies: Sequence[Study],
        labeler: Labeler,
        results: Mapping[str, Any] | None = None,
    ) -> None:
        name = page.resolve().parent.name if page.name in (PAGE, PREDICT_PAGE) else page.name.removesuffix(f".{PAGE}")
        assert isinstance(module, ReportModule)
        if not rows:
            return
        wanted = {row["id"] for row in rows}
        gallery = Gallery(
            {"model": rows},
            labeler,
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
    """Return the callback that has the results; it runs first."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, ResultWriter))  # type: ignore[attr-defined]
