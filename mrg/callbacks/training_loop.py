"""All private parts of Lightning that `mrg` uses; above all, a boundary after each round of training.

Lightning has no hook for a boundary: `on_train_batch_end` runs before a batch has been logged, counted and validated,
so a checkpoint written there repeats or skips a part of the round. A boundary comes after all three. If a validation
is due, there is one before it as well, so that a stop during a long validation costs no training.

`lightning<2.7` is pinned because of this file; `PRIVATE` lists what a newer release must be checked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from mrg.run.checkpoints import EPOCH, ROUND, UNVALIDATED

PRIVATE = {
    "trainer": ("_accelerator_connector", "_checkpoint_connector", "_signal_connector"),
    "fit_loop": ("_combined_loader",),
    "epoch_loop": (
        "_is_training_done", "_num_ready_batches_reached", "_results", "_should_accumulate", "_should_check_val_fx",
    ),
}  # fmt: skip
"""Object of Lightning -> its private attributes that this file reads."""

Boundary = Callable[[str], None]


class RoundLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, with boundaries.

    `boundary` is called with the kind of each boundary, `on_data_ready` once the data have been set up and
    `before_rounds` after a resume. `resumed` is the kind of the boundary at which the run resumes.
    """

    boundary: Boundary
    on_data_ready: Callable[[], None]
    before_rounds: Callable[[], None]
    resumed: str = ""

    @property
    def num_rounds(self) -> int:
        """Number of rounds completed over all epochs."""
        return int(self.batch_progress.total.completed)

    @property
    def is_last(self) -> bool:
        """Whether training ends after this round."""
        return bool(self.trainer.should_stop or self.trainer.fit_loop.done or self._is_training_done)

    @property
    def accumulates(self) -> bool:
        """Whether gradients are kept for the batches to come."""
        return self.trainer.accumulate_grad_batches > 1 and self._should_accumulate()

    def reset(self) -> None:
        """Start a new epoch if the saved one had ended."""
        if self.resumed == EPOCH:
            self.restarting = False
        super().reset()

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """After a resume: restore what the setup has changed, and run the validation that was due."""
        super().on_run_start(data_fetcher)
        if self.resumed:
            resumed, self.resumed = self.resumed, ""
            # Lightning would look for a batch or a validation that was interrupted: there is none at a boundary.
            self.restarting = False
            self.before_rounds()
            if resumed == UNVALIDATED:
                self._end_round(data_fetcher)

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Run a round; values that only an earlier round has logged are not logged again."""
        for key in [key for key, result in self._results.items() if not result.meta.on_epoch]:
            del self._results[key]
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate if it is due, with a boundary before and after."""
        if self._should_check_val_fx(data_fetcher):
            self.boundary(UNVALIDATED)
        self._end_round(data_fetcher)

    def _end_round(self, data_fetcher: _DataFetcher) -> None:
        super().on_advance_end(data_fetcher)
        if not self._num_ready_batches_reached():
            self.boundary(ROUND)


class EpochLoop(_FitLoop):
    """Lightning's loop over epochs."""

    epoch_loop: RoundLoop

    def setup_data(self) -> None:
        """Set up the data; everything that a resume can be refused for has then been checked."""
        first = self._combined_loader is None
        super().setup_data()
        if first:
            self.epoch_loop.on_data_ready()

    def on_advance_end(self) -> None:
        """End the last round of an epoch with the epoch: callbacks may use its validation there."""
        super().on_advance_end()
        if self.epoch_loop._num_ready_batches_reached():
            self.epoch_loop.boundary(EPOCH)


def install(
    trainer: L.Trainer, boundary: Boundary, on_data_ready: Callable[[], None], before_rounds: Callable[[], None]
) -> RoundLoop:
    """Replace the loops of a trainer by loops with boundaries; they take over the state of the replaced ones.

    Args:
        trainer: Trainer whose `fit` is about to start.
        boundary: Called at each boundary with its kind.
        on_data_ready: Called once the data have been set up, even if nothing is left to train.
        before_rounds: Called after a resume, right before the first batch is read.
    """
    rounds, epochs = RoundLoop(trainer), EpochLoop(trainer)
    rounds.__dict__.update(vars(trainer.fit_loop.epoch_loop))
    rounds.boundary, rounds.on_data_ready, rounds.before_rounds = boundary, on_data_ready, before_rounds
    rounds.resumed = ""
    epochs.__dict__.update(vars(trainer.fit_loop), epoch_loop=rounds)
    trainer.fit_loop = epochs
    return rounds


def dump_checkpoint(trainer: L.Trainer) -> dict[str, Any]:
    """Return the content of a checkpoint; all ranks must call it, because sharded weights are gathered."""
    content: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    return content


def take_sigterm(trainer: L.Trainer) -> bool:
    """Return whether Lightning has received SIGTERM, and make it forget: it would not finish the round."""
    received = trainer.received_sigterm
    trainer._signal_connector.received_sigterm = False
    return received


def cluster_environment(trainer: L.Trainer) -> Any:
    """Return the trainer's cluster environment; a strategy of a single device does not give access to it."""
    return trainer._accelerator_connector.cluster_environment
