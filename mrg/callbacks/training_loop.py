"""Lightning's training loops with a boundary after each round, at which everything that belongs to it is done.

Lightning has no hook for this: `on_train_batch_end` comes before a batch is logged, counted and validated, and what is
resumed from there repeats or leaves out a part of it. A boundary lies behind all three. Where a validation is due there
is one before it, too, so that an end in the middle of a long validation costs no training.

The classes take the place of Lightning's own in a trainer that exists already (`lightning<2.7` is pinned for such
reasons), so that any trainer can be given the callback that needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from mrg.run.checkpoints import EPOCH, ROUND, UNVALIDATED

Boundary = Callable[[str], None]


class RoundLoop(_TrainingEpochLoop):
    """Rounds of an epoch; `boundary` is called with a boundary's kind, `resumed` is the kind to go on from."""

    boundary: Boundary
    take_up: Callable[[], None]
    before_rounds: Callable[[], None]
    resumed: str = ""

    def reset(self) -> None:
        """Begin a new epoch where the one that was saved had ended."""
        if self.resumed == EPOCH:
            self.restarting = False
        super().reset()

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """After a resume: set what setting up has changed, and make up for the validation that was due."""
        super().on_run_start(data_fetcher)
        if self.resumed:
            resumed, self.resumed = self.resumed, ""
            # Lightning would look for a batch or a validation that was broken off: there is none at a boundary.
            self.restarting = False
            self.before_rounds()
            if resumed == UNVALIDATED:
                self._end_round(data_fetcher)

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """A round; what an earlier one logged and this one does not is not logged again."""
        for key in [key for key, result in self._results.items() if not result.meta.on_epoch]:
            del self._results[key]
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate where it is due, with a boundary before and after."""
        if self._should_check_val_fx(data_fetcher):
            self.boundary(UNVALIDATED)
        self._end_round(data_fetcher)

    def _end_round(self, data_fetcher: _DataFetcher) -> None:
        super().on_advance_end(data_fetcher)
        if not self._num_ready_batches_reached():
            self.boundary(ROUND)


class EpochLoop(_FitLoop):
    """Epochs."""

    def setup_data(self) -> None:
        """Once all that is resumed has proved to fit, its place among the studies last, take it up."""
        first = self._combined_loader is None
        super().setup_data()
        if first:
            assert isinstance(self.epoch_loop, RoundLoop)
            self.epoch_loop.take_up()

    def on_advance_end(self) -> None:
        """The last round of an epoch ends with the epoch: callbacks may look at its validation there."""
        super().on_advance_end()
        if self.epoch_loop._num_ready_batches_reached():
            assert isinstance(self.epoch_loop, RoundLoop)
            self.epoch_loop.boundary(EPOCH)


def install(
    trainer: L.Trainer, boundary: Boundary, take_up: Callable[[], None], before_rounds: Callable[[], None]
) -> RoundLoop:
    """Give a trainer boundaries.

    Args:
        trainer: Of which `fit` is about to start.
        boundary: Called at each, with its kind.
        take_up: Called once the data are there, also where nothing is left to train.
        before_rounds: Called after a resume, right before the first batch is taken.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    trainer.fit_loop.__class__ = EpochLoop
    loop.__class__ = RoundLoop
    loop.boundary, loop.take_up, loop.before_rounds, loop.resumed = boundary, take_up, before_rounds, ""
    assert isinstance(loop, RoundLoop)
    return loop
