"""Updates the page of a run, `runs/<name>/index.html`, and `run.json` during training."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from mrg.callbacks.progress import Pace
from mrg.errors import one_line
from mrg.files import write_json
from mrg.log import log
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems
from mrg.modules.base import ReportModule
from mrg.pages.training_log import STATE

_SCORES = {"val/mccs": "MCCS", "val/ce_f1": "CE-F1 micro-13+", "val/ce_f1_macro": "CE-F1 macro-13+"}
PAUSE = 100
"""Smallest pause between two pages, as a multiple of the time that a page takes."""


class RunPage(L.Callback):
    """Writes the page when training starts, ends or fails, and in between at a cost of at most 1 % of the time.

    Args:
        folder: Folder of the run, `<runs>/<name>`.
        interval: Smallest number of seconds between two pages.
    """

    def __init__(self, folder: Path, interval: float = 10.0) -> None:
        self.folder, self.interval = folder, interval
        self.state: dict[str, Any] = {}
        self.pace: Pace | None = None
        self.written = 0.0
        self.cost = 0.5  # seconds for the last page, at first a guess
        self.total_cost = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the run, and the scores of constant reports on the validation split."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, ReportModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.pace = Pace(trainer)
        self.state = {
            "state": "running",
            "error": None,
            "started": _now(),
            "policy": pl_module.source,
            "lower_is_better": getattr(trainer.checkpoint_callback, "minimizes", None),
            "studies": {split: len(studies) for split, studies in data.splits.items()},
            **constant_scores([study.report for study in data.splits["val"]], data.train_reports(), pl_module),
        }
        self._write(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Log the learning rate and, on a GPU, the peak of its memory so far in GB."""
        if not self.state:
            return
        values = {"train/learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"])}
        if pl_module.device.type == "cuda":
            values["train/gpu_memory"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
        pl_module.log_dict(values, rank_zero_only=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Write the page if it is due."""
        if self.state and time.monotonic() - self.written >= max(self.interval, PAUSE * self.cost):
            started = time.perf_counter()
            self._write(trainer)
            self.cost = time.perf_counter() - started
            self.total_cost += self.cost

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last page."""
        if self.state:
            self.state["state"] = "finished"
            self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Show on the page why the run stopped."""
        if not self.state:
            return
        reason = one_line(exception) or f"{type(exception).__name__}: {exception}".rstrip(": ")
        if isinstance(exception, KeyboardInterrupt):
            reason = "interrupted from the keyboard"
        self.state |= {"state": "stopped", "error": reason}
        self._write(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the results."""
        self._again(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add links to the predictions."""
        self._again(trainer)

    def _again(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and (self.folder / STATE).is_file():
            from mrg.pages.run import write_run_page

            _try(lambda: write_run_page(self.folder))

    def _write(self, trainer: L.Trainer) -> None:
        _try(lambda: self._write_now(trainer))
        self.written = time.monotonic()

    def _write_now(self, trainer: L.Trainer) -> None:
        # Importing matplotlib takes half a second, which a test without a page need not wait for.
        from mrg.pages.run import write_run_page

        assert self.pace is not None
        for logger in trainer.loggers:
            logger.save()  # metrics.csv is written every few steps
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state |= {
            "updated": _now(),
            "step": self.pace.step,
            "num_steps": self.pace.num_steps,
            "seconds": self.pace.seconds,
            "seconds_left": self.pace.seconds_left,
            "page_seconds": self.total_cost,
        }
        write_json(self.folder / STATE, self.state)
        write_run_page(self.folder)


def constant_scores(target: list[str], train: list[str], module: ReportModule) -> dict[str, dict[str, float]]:
    """Score the constant normal report, and the best constant report of each score on the training reports.

    Args:
        target: References.
        train: Training reports.
        module: Module with a labeler and the margin of MCCS.

    Returns:
        `constant_normal` and `best_constant`: log key -> score; empty without references or training reports.
    """
    found: dict[str, Any] = {"constant_normal": {}, "best_constant": {}}
    if target:
        best = BestConstants.of(train, module.labeler, module.margin)
        normal = {"constant normal": [CONSTANT_NORMAL] * len(target)}
        results = evaluate_systems(normal, target, module.labeler, module.margin, num_resamples=1, best=best)
        found["constant_normal"] = results["systems"]["constant normal"]["scores"]
        found["best_constant"] = results["best_constant"]["scores"] if best else {}
    return {
        name: {key: scores[score]["value"] for key, score in _SCORES.items() if scores}
        for name, scores in found.items()
    }


def _try(write: Callable[[], object]) -> None:
    """Write the page; a failure is logged, but neither ends the run nor hides why it ended."""
    try:
        write()
    except Exception as error:
        log.warning(f"The page of the run could not be written: {type(error).__name__}: {error}")


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
