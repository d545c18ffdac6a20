"""Checkpoints from which a run goes on as if nothing had happened: same weights, same metrics, same predictions.

Saved at the boundaries of rounds (see `rounds.py`): what is trained, the optimiser and its schedule, counters, the
place in the order of studies, every global random generator of every process, the state of callbacks, and how long the
logs were. A signal to end (SIGTERM, or the one with which SLURM announces the end) lets the round finish, saves and
leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from mrg.callbacks.checkpoint_state import Before, CheckpointError, write_checkpoint
from mrg.callbacks.ending import Speaker, how_to_go_on, say_below
from mrg.callbacks.preemption import EndSignal, Preempted, requeue
from mrg.callbacks.training_loop import RoundLoop, install
from mrg.errors import UserError
from mrg.files import count_lines
from mrg.modules.ranks import any_rank
from mrg.run.checkpoints import ROUND, UNVALIDATED, CheckpointFolder, checkpoint_name
from mrg.run.resume import Best, Resumed, clean, nothing_left

LOGS = ("metrics.csv", "samples.jsonl")
"""Files of the run folder to which training adds lines; a resumed run cuts what came after its checkpoint."""


class Checkpoints(Checkpoint):
    """Saves rounds, and resumes from them exactly.

    Args:
        folder: The run's folder; checkpoints go to `checkpoints/` in it.
        monitor: Logged score by which the best checkpoint is chosen; one that ends in "loss" is minimised.
        save_every: Rounds from one checkpoint to the next. There is one before and after each validation, too, and one
            at the end.
        keep: How many of the last checkpoints are kept, beside the best.
        begin: Makes room in the folder; called where a run starts anew, once nothing can be refused any more.

    Raises:
        ValueError: If `save_every` or `keep` is below 1.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str = "val/mccs",
        save_every: int = 50,
        keep: int = 2,
        begin: Callable[[], None] | None = None,
    ) -> None:
        for name, value in (("save_every", save_every), ("keep", keep)):
            if value < 1:
                raise UserError(f"Expected {name} to be at least 1, but got {value}.")
        self.run_folder, self.monitor, self.save_every = folder, monitor, save_every
        self.files = CheckpointFolder(folder / "checkpoints", keep)
        self.begin = begin
        self.best = Best("", float("nan"), monitor)
        self.last = ""
        self.begun = False
        self.place = ROUND
        self.validated = False
        self.signal, self.speaker = EndSignal(), Speaker()
        self.resumed: Resumed | None = None
        self.before: Before | None = None
        self.loop: RoundLoop | None = None
        self.trainer: L.Trainer | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the trainer boundaries."""
        if stage == "fit":
            self.trainer = trainer
            self.loop = install(trainer, self.boundary, self.take_up, self.before_rounds)

    # Saving

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that there is a new score."""
        self.validated = not trainer.sanity_checking

    def boundary(self, place: str) -> None:
        """Save where it is time to; leave where a signal asks for it."""
        trainer, loop = self.trainer, self.loop
        assert trainer is not None
        assert loop is not None
        number = loop.batch_progress.total.completed
        name = checkpoint_name(number, place != UNVALIDATED)
        validated, self.validated = self.validated, False
        if validated:
            self._compare(trainer, name)
        ends = any_rank(bool(self.signal.number), trainer.world_size, trainer.strategy.root_device)
        last = trainer.should_stop or trainer.fit_loop.done or loop._is_training_done
        if place == UNVALIDATED or validated or ends or last or number % self.save_every == 0:
            self.place = place
            self.save(trainer, name)
        if ends:
            self._leave(trainer, number)
        # Manual optimisation: a round has a part before its first step, which may take long and can fail.
        if not trainer.lightning_module.automatic_optimization:
            self.before = Before.now(trainer, loop, name, place)

    def _compare(self, trainer: L.Trainer, name: str) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(key for key in trainer.callback_metrics if key.startswith("val/")))
            raise UserError(f"The run logs no {self.monitor!r} to choose its best checkpoint by; --monitor: {known}.")
        score = float(trainer.callback_metrics[self.monitor])
        better = score < self.best.score if self.monitor.endswith("loss") else score > self.best.score
        # Also the first one, one after a score that was not a number, and the first one by another score.
        if better or self.best.score != self.best.score or self.best.monitor != self.monitor:
            self.best = Best(name, score, self.monitor)

    def save(self, trainer: L.Trainer, name: str, before: Before | None = None) -> None:
        """Write the state of all ranks into one file; see `write_checkpoint`."""
        assert self.loop is not None
        write_checkpoint(trainer, self.loop, self.files, name, self.best.name, before)
        self.last = name

    def state_dict(self) -> dict[str, Any]:
        """The place, the best checkpoint, and how long the logs are."""
        trainer = self.trainer
        return {
            "place": self.place,
            "best": self.best.name,
            "score": self.best.score,
            "monitor": self.best.monitor,
            "should_stop": bool(trainer is not None and trainer.should_stop),
            "lines": {name: count_lines(self.run_folder / name) for name in LOGS},
        }

    # Resuming

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed when the data are there.

        Raises:
            ValueError: If the checkpoint is not one of ours, or was written by more or fewer processes.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.resumed = Resumed.read(trainer, checkpoint, self.state_key)
        assert self.loop is not None
        self.loop.resumed = self.resumed.state["place"]
        trainer.should_stop = self.resumed.state["should_stop"]

    def take_up(self) -> None:
        """Make the run folder what it was when the checkpoint was written; all checks are behind us."""
        trainer, resumed = self.trainer, self.resumed
        assert trainer is not None
        if trainer.is_global_zero:
            best = clean(self.run_folder, self.files, resumed, self.monitor, self.begin)
            self.best = best or self.best
            self.last = resumed.name if resumed is not None and resumed.is_in(self.files) else ""
            if line := nothing_left(trainer):
                print(line, flush=True)
        self.begun = True
        self.best, self.last = trainer.strategy.broadcast((self.best, self.last))

    def before_rounds(self) -> None:
        """Put back what this process had of its own, right before the first batch."""
        assert self.trainer is not None
        assert self.resumed is not None
        self.resumed.put_back(self.trainer.lightning_module)

    # Ending

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Catch the signals that announce an end."""
        self.signal.catch(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Leave a validation: the state before it is saved. Several processes end it first, they cannot agree here."""
        if self.signal.number and trainer.world_size == 1 and not trainer.sanity_checking and self.last:
            assert self.loop is not None
            self._leave(trainer, self.loop.batch_progress.total.completed)

    def _leave(self, trainer: L.Trainer, number: int) -> None:
        name = self.signal.name
        if trainer.is_global_zero:
            path = self.files.path / self.last
            print(f"{name}: round {number} is saved in {path}. {how_to_go_on(self.run_folder)}", flush=True)
            if self.signal.asks_for_requeue(trainer):
                requeue()
        raise Preempted(f"ended by {name} after round {number}, which is saved")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say what a run that was broken off left behind."""
        if isinstance(exception, Preempted) or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.before is not None and self.before.name != self.last and getattr(pl_module, "intact", False):
            self.place, trainer.should_stop = self.before.place, self.before.should_stop
            try:
                self.save(trainer, self.before.name, self.before)
            except CheckpointError as error:
                if trainer.is_global_zero:
                    print(f"\n{error}", flush=True)
        if not self.speaker.is_here(trainer):
            return
        # What was written last may not be noted yet, and what a run resumes from is there before it has begun.
        last = next((self.files.path / name for name in self.files.names()), None) if self.begun else trainer.ckpt_path
        if last and (self.begun or isinstance(exception, KeyboardInterrupt)):
            line = f"The last checkpoint is {last}. {how_to_go_on(self.run_folder)}"
            say_below(exception, line, trainer.world_size)
        elif isinstance(exception, KeyboardInterrupt):
            print("\nInterrupted before the first checkpoint: see --save_every.", flush=True)
