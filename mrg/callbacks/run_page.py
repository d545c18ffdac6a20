"""Keeps `runs/<name>/index.html` and `run.json` up to date while a run trains."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L

from mrg.callbacks.progress import Pace
from mrg.errors import one_line
from mrg.files import write_json
from mrg.metrics import ce_f1, mccs
from mrg.metrics.evaluation import CONSTANT_NORMAL
from mrg.modules.base import ReportModule
from mrg.pages.training_log import STATE

PAUSE = 100
"""Times what a page took, the pause to the next one."""


class RunPage(L.Callback):
    """Writes the page when training begins and ends, when it fails, and in between as often as it costs at most 1 %.

    The pause between two pages is a hundred times what the last one took, and at least `interval`.

    Args:
        folder: `<runs>/<name>`.
        interval: Least seconds between two pages.
    """

    def __init__(self, folder: Path, interval: float = 10.0) -> None:
        self.folder, self.interval = folder, interval
        self.state: dict[str, Any] = {}
        self.pace: Pace | None = None
        self.written = 0.0
        # A guess for the first page of a run that has scores; then what the last one took.
        self.cost = 0.5
        # What rounds have waited for pages.
        self.total_cost = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what runs, and what the constant normal report would score on the validation split."""
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
            "studies": {split: len(studies) for split, studies in data.splits.items()},
            "constant_normal": constant_normal([study.report for study in data.splits["val"]], pl_module),
        }
        self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Write the page where it is due."""
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
        """Say on the page why the run stopped."""
        if not self.state:
            return
        reason = one_line(exception) or f"{type(exception).__name__}: {exception}".rstrip(": ")
        if isinstance(exception, KeyboardInterrupt):
            reason = "interrupted from the keyboard"
        self.state |= {"state": "stopped", "error": reason}
        self._write(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the results too."""
        self._again(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Link what was written."""
        self._again(trainer)

    def _again(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and (self.folder / STATE).is_file():
            from mrg.pages.run import write_run_page

            _try(lambda: write_run_page(self.folder))

    def _write(self, trainer: L.Trainer) -> None:
        _try(lambda: self._write_now(trainer))
        self.written = time.monotonic()

    def _write_now(self, trainer: L.Trainer) -> None:
        # The first import of matplotlib takes half a second, which a test without a page need not wait for.
        from mrg.pages.run import write_run_page

        assert self.pace is not None
        for logger in trainer.loggers:
            logger.save()  # metrics.csv is written a few steps at a time
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


def constant_normal(target: list[str], module: ReportModule) -> dict[str, float]:
    """What the constant normal report earns, by log keys; empty without references."""
    if not target:
        return {}
    references = module.labeler(target)
    normal = module.labeler([CONSTANT_NORMAL]).expand_as(references)
    return {
        "val/mccs": float(mccs(normal, references, module.margin)),
        "val/ce_f1": float(ce_f1(normal, references)),
        "val/ce_f1_macro": float(ce_f1(normal, references, average="macro")),
    }


def _try(write: Callable[[], object]) -> None:
    """Write the page; where that fails it is said, but ends no run and hides no other reason for an end."""
    try:
        write()
    except Exception as error:
        print(f"The run's page could not be written: {type(error).__name__}: {error}", flush=True)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
