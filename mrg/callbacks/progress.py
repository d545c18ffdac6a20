"""The progress of a run in one line: live on a terminal, printed from time to time elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SCORES = {
    "reward/total": "reward",
    "train/loss": "loss",
    "val/loss": "val loss",
    "val/mccs": "MCCS",
    "val/ce_f1": "CE-F1",
}
"""Log key -> its name in the line; the scores of a validation are shown until the next one."""

STALLS = {"train/truncated": "truncated", "train/dead_groups": "equal rewards"}
"""Log key -> its name in the line: shares of completions, or groups of them, that give no gradient."""
SHOWN_FROM = 0.9
"""Shares from which they are shown: the reward alone does not show why it stalls."""


class Pace:
    """Progress of training and the time left at the average speed so far, including validation."""

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer
        self.started = time.monotonic()
        self.first = self.step

    @property
    def by_steps(self) -> bool:
        """Whether training ends after a number of optimizer steps rather than of batches."""
        return self.trainer.max_steps is not None and self.trainer.max_steps > 0

    @property
    def step(self) -> int:
        """Number of optimizer steps so far, or of batches if the end is given in epochs."""
        return self.trainer.global_step if self.by_steps else self.trainer.fit_loop.total_batch_idx + 1

    @property
    def num_steps(self) -> int | None:
        """Number of steps in total; None if it is unknown."""
        if self.by_steps:
            return self.trainer.max_steps
        total = (self.trainer.max_epochs or 0) * self.trainer.num_training_batches
        return int(total) if 0 < total < math.inf else None

    @property
    def seconds(self) -> float:
        """Seconds since training started."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the average speed; None before the first step, or without an end."""
        done = self.step - self.first
        if done <= 0 or self.num_steps is None:
            return None
        return max(0, self.num_steps - self.step) * self.seconds / done

    @property
    def text(self) -> str:
        """The time left, or at the end the time it took."""
        left = self.seconds_left
        if left is None:
            return ""
        return f"{clock(left)} left" if left else f"in {clock(self.seconds)}"


def clock(seconds: float) -> str:
    """Format seconds as `1:15` or `1:02:05`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def score_text(trainer: L.Trainer) -> str:
    """Return reward or loss, what stalls learning, the last validation, and speed, as far as they are logged."""
    metrics = trainer.callback_metrics
    names = dict(SCORES)
    if "reward/total" in metrics:
        del names["train/loss"]  # GRPO's loss is not informative
    parts = [f"{name} {float(metrics[key]):.3f}" for key, name in names.items() if key in metrics]
    shares = [(float(metrics[key]), name) for key, name in STALLS.items() if key in metrics]
    parts[1:1] = [f"{math.floor(100 * share)}% {name}" for share, name in shares if share >= SHOWN_FROM]
    if "train/tokens_per_second" in metrics:
        parts.append(f"{float(metrics['train/tokens_per_second']):,.0f} tokens/s")
    return "  ".join(parts)


class ProgressLine(ProgressBar):
    """Progress line that is live on a terminal.

    In a file or a pipe a plain line is printed after each validation, and in between at most every `interval` seconds.
    `NO_COLOR` turns colors off.

    Args:
        interval: Smallest number of seconds between two plain lines.
    """

    def __init__(self, interval: float = 60.0) -> None:
        super().__init__()
        self.interval = interval
        self.enabled = True
        self.pace: Pace | None = None
        self.bar: Progress | None = None
        self.task: Any = None
        self.printed = self.drawn = 0.0

    def disable(self) -> None:
        """Turn the line off; Lightning calls this on all ranks but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Turn the line on."""
        self.enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        if self.enabled:
            print(*args, flush=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the line."""
        self.pace, self.printed = Pace(trainer), time.monotonic()
        self._open("training", self.pace.num_steps)
        self._show(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Update the live line a few times per second, or print a plain one if it is due."""
        now = time.monotonic()
        if self.bar is not None and now - self.drawn > 0.2:
            self._show(trainer)
        elif self.bar is None and now - self.printed > self.interval:
            self._print(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the line, or show the validation on that of training."""
        if trainer.state.fn == "validate":
            self._open("validate", self._batches(trainer.num_val_batches))
        else:
            self._show_validation(trainer, 0)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Count a batch."""
        if trainer.state.fn == "validate":
            self._count(batch_idx)
        else:
            self._show_validation(trainer, batch_idx + 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the scores."""
        if trainer.state.fn == "validate":
            self._close()
        elif not trainer.sanity_checking and self.pace is not None:
            self._show(trainer)
            if self.bar is None:
                self._print(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the line after a last update."""
        self._show(trainer)
        self._close()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the line."""
        self._open("test", self._batches(trainer.num_test_batches))

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the line."""
        self._open("predict", self._batches(trainer.num_predict_batches))

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Count a batch."""
        self._count(batch_idx)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Close the line, so that messages are printed below it."""
        self._close()

    on_predict_batch_end = on_test_batch_end  # type: ignore[assignment]
    on_predict_end = on_test_end
    on_exception = on_test_end  # type: ignore[assignment]

    @staticmethod
    def _batches(numbers: Any) -> int | None:
        total = sum(numbers)
        return int(total) if total < math.inf else None

    def _open(self, name: str, total: int | None) -> None:
        """Open a live line if there is a terminal."""
        console = Console()
        self._close()
        if not self.enabled or not console.is_terminal or console.is_dumb_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[scores]}"),
        )
        self.bar = Progress(*columns, console=console, refresh_per_second=4)
        self.task = self.bar.add_task(name, total=total, scores="")
        self.bar.start()

    def _count(self, batch_idx: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=batch_idx + 1)

    def _show_validation(self, trainer: L.Trainer, done: int) -> None:
        if self.bar is not None:
            total = self._batches(trainer.num_val_batches)
            self.bar.update(self.task, scores=f"validating, {done} of {total} batches", refresh=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _show(self, trainer: L.Trainer) -> None:
        if self.bar is not None and self.pace is not None:
            self.drawn = time.monotonic()
            scores = "  ".join(part for part in (score_text(trainer), self.pace.text) if part)
            self.bar.update(self.task, completed=self.pace.step, scores=scores)

    def _print(self, trainer: L.Trainer) -> None:
        if not self.enabled or self.pace is None:
            return
        self.printed = time.monotonic()
        total = self.pace.num_steps
        parts = [f"step {self.pace.step}" + (f" of {total}" if total else ""), score_text(trainer), self.pace.text]
        print("  ".join(part for part in parts if part), flush=True)
