"""Checkpoints from which a run resumes as if it had never stopped: same weights, same metrics, same predictions.

A checkpoint is written at the boundary of a round (see `training_loop.py`). It contains the trained weights, the
optimizer and its schedule, all counters, the position in the order of studies, the random generators of every process,
the state of callbacks and the length of the logs. After a signal to end (SIGTERM, SIGHUP, or the one by which SLURM
announces the end), the round is finished and saved, and the run exits.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from mrg.callbacks.preemption import EndSignal, Preempted, Reporter, print_last, requeue, resume_command
from mrg.callbacks.training_loop import RoundLoop, dump_checkpoint, install
from mrg.errors import RunError, UserError
from mrg.files import WriteError, count_lines
from mrg.log import log
from mrg.modules.policy.ranks import any_rank, gather
from mrg.run.checkpoints import ROUND, UNVALIDATED, CheckpointFolder, checkpoint_name
from mrg.run.resume import Best, Resumed, nothing_left, restore_folder, rng_state
from mrg.strategy import FSDP2

LOGS = ("metrics.csv", "samples.jsonl", "events.jsonl")
"""Files of the run folder to which training appends; a resumed run removes the lines written after its checkpoint."""
TRAINING = ("train", "reward", "recall", "seconds")
"""Groups of scores that are logged in training; all others must be there after the sanity check."""


class CheckpointError(RunError):
    """A checkpoint could not be written."""


@dataclasses.dataclass
class Snapshot:
    """The state at a boundary that a failed round changes even if it updates no weight.

    Args:
        name: File name of the checkpoint of that state.
        place: Kind of the boundary.
        should_stop: Whether training was about to end.
        rank: State of this process, see `rank_state`.
        loops: Counters.
    """

    name: str
    place: str
    should_stop: bool
    rank: dict[str, Any]
    loops: dict[str, Any]

    @classmethod
    def take(cls, trainer: L.Trainer, loop: RoundLoop, name: str, place: str) -> Snapshot:
        """Copy the present state."""
        loops = copy.deepcopy(trainer.fit_loop.state_dict())
        return cls(name, place, trainer.should_stop, rank_state(trainer, loop), loops)


def rank_state(trainer: L.Trainer, loop: RoundLoop) -> dict[str, Any]:
    """Return what differs between processes: random generators, and gradients that are still accumulated."""
    own = trainer.lightning_module.named_parameters() if loop.accumulates else []
    return {"rng": rng_state(), "gradients": {name: p.grad.cpu() for name, p in own if p.grad is not None}}


class Checkpoints(Checkpoint):
    """Writes checkpoints of rounds, and resumes from them exactly.

    Args:
        folder: Folder of the run; checkpoints are written to `checkpoints/` in it.
        monitor: Logged score by which the best checkpoint is chosen. It is minimized if its name ends in "loss", or if
            it is one of the module's `scores` whose `higher_is_better` is False.
        save_every: Number of rounds between two checkpoints. There is also one before and after each validation, and
            one at the end.
        keep: Number of recent checkpoints to keep besides the best.
        begin: Makes room in the folder; called when a run starts from the beginning, after all checks.

    Raises:
        UserError: If `save_every` or `keep` is below 1.
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
        self.signal, self.reporter = EndSignal(), Reporter()
        self.resumed: Resumed | None = None
        self.before: Snapshot | None = None
        self.loop: RoundLoop
        self.trainer: L.Trainer

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Install the loops with boundaries."""
        if stage == "fit":
            self.trainer = trainer
            self.loop = install(trainer, self.boundary, self.on_data_ready, self.before_rounds)

    # Saving

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that there is a new score."""
        self.validated = not trainer.sanity_checking
        if trainer.sanity_checking and self.monitor.partition("/")[0] not in TRAINING:
            self._check_monitor(trainer.callback_metrics)

    def boundary(self, place: str) -> None:
        """Save if a checkpoint is due, and leave if a signal has asked for it."""
        trainer, loop = self.trainer, self.loop
        name = checkpoint_name(loop.num_rounds, place != UNVALIDATED)
        validated, self.validated = self.validated, False
        if validated:
            self._compare(name)
        ends = any_rank(bool(self.signal.number), trainer.world_size, trainer.strategy.root_device)
        last = loop.is_last  # sets counters of Lightning's that are saved
        if place == UNVALIDATED or validated or ends or last or loop.num_rounds % self.save_every == 0:
            self.place = place
            self.save(name)
        if ends:
            self._leave()
        # With manual optimization a round has a part before its first step, which may take long and can fail.
        if not trainer.lightning_module.automatic_optimization:
            self.before = Snapshot.take(trainer, loop, name, place)

    def _compare(self, name: str) -> None:
        metrics = self.trainer.callback_metrics
        self._check_monitor(metrics)
        score = float(metrics[self.monitor])
        better = score < self.best.score if self.minimizes else score > self.best.score
        # Also the first one, one after a score that was not a number, and the first one by another score.
        if better or self.best.score != self.best.score or self.best.monitor != self.monitor:
            self.best = Best(name, score, self.monitor)

    @property
    def minimizes(self) -> bool:
        """Whether a lower score is better."""
        scores: Any = getattr(self.trainer.lightning_module, "scores", {})
        name = self.monitor.removeprefix("val/")
        return self.monitor.endswith("loss") or (
            name in scores and getattr(scores[name], "higher_is_better", True) is False
        )

    def _check_monitor(self, metrics: Iterable[str]) -> None:
        if self.monitor not in (names := list(metrics)):
            known = ", ".join(sorted(key for key in names if key.startswith("val/")))
            raise UserError(f"The run logs no {self.monitor!r} to choose its best checkpoint by; --monitor: {known}.")

    def save(self, name: str, before: Snapshot | None = None) -> None:
        """Write the state of all ranks into one checkpoint.

        Args:
            name: File name of the checkpoint.
            before: Snapshot to write if the present round failed before it updated a weight.

        Raises:
            CheckpointError: On all ranks, if it cannot be written.
        """
        trainer, strategy, problem = self.trainer, self.trainer.strategy, ""
        if trainer.is_global_zero:
            try:
                for logger in trainer.loggers:
                    logger.save()
            except WriteError as error:
                problem = str(error)
        checkpoint = dump_checkpoint(trainer)
        if before is not None:
            checkpoint["loops"]["fit_loop"] = before.loops
        own = rank_state(trainer, self.loop) if before is None else before.rank
        checkpoint["ranks"] = gather(own, trainer.world_size)
        sharded = isinstance(strategy, FSDP2) and strategy.one_file_per_rank
        if sharded:
            problem = problem or self._write_shards(name, checkpoint)
        if trainer.is_global_zero and not problem:
            try:
                if sharded:
                    self.files.take(name, self.best.name)
                else:
                    self.files.save(name, checkpoint, self.best.name)
            except WriteError as error:
                problem = str(error)
        problem = next(filter(None, gather(problem, trainer.world_size)), "")
        if problem:
            raise CheckpointError(f"The state of this round could not be saved: {problem}")
        self.last = name

    def _write_shards(self, name: str, checkpoint: dict[str, Any]) -> str:
        """Let each rank write its shard into one folder; returns what went wrong."""
        folder = self.files.unfinished(name)
        try:
            if self.trainer.is_global_zero:
                shutil.rmtree(folder, ignore_errors=True)
            self.trainer.strategy.barrier()
            self.trainer.strategy.save_checkpoint(checkpoint, folder)
        except Exception as error:  # torch gathers the errors of all ranks into one of its own, with tracebacks
            lines = str(error).strip().splitlines()
            return f"{folder} cannot be written ({lines[-1].strip() if lines else type(error).__name__})."
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return the kind of boundary, the best checkpoint, and the length of the logs."""
        return {
            "place": self.place,
            "best": self.best.name,
            "score": self.best.score,
            "monitor": self.best.monitor,
            "should_stop": bool(hasattr(self, "trainer") and self.trainer.should_stop),
            "lines": {name: count_lines(self.run_folder / name) for name in LOGS},
        }

    # Resuming

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed once the data have been set up.

        Raises:
            UserError: If the checkpoint is not one of ours, or was written by more or fewer processes.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.resumed = Resumed.read(trainer, checkpoint, self.state_key)
        self.loop.resumed = self.resumed.state["place"]
        trainer.should_stop = self.resumed.state["should_stop"]

    def on_data_ready(self) -> None:
        """Restore the run folder to the time of the checkpoint, now that all checks have passed."""
        trainer, resumed = self.trainer, self.resumed
        logged: list[str] = []
        if resumed is not None and (table := self.run_folder / LOGS[0]).is_file():
            with table.open(encoding="utf-8", errors="replace") as file:
                logged = file.readline().strip().split(",")
        if self.monitor.startswith("val/") and any(name.startswith("val/") for name in logged):
            self._check_monitor(logged)  # a resumed run has no sanity check
        if trainer.is_global_zero:
            best = restore_folder(self.run_folder, self.files, resumed, self.monitor, self.begin)
            self.best = best or self.best
            self.last = resumed.name if resumed is not None and resumed.is_in(self.files) else ""
            if line := nothing_left(trainer):
                log.info(line)
        self.begun = True
        self.best, self.last = trainer.strategy.broadcast((self.best, self.last))

    def before_rounds(self) -> None:
        """Restore the state of this process, right before the first batch."""
        assert self.resumed is not None
        self.resumed.restore_rank(self.trainer.lightning_module)

    # Ending

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle the signals that announce an end."""
        self.signal.catch(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Leave a validation, whose start has been saved. Several processes finish it: they cannot agree here."""
        if self.signal.number and trainer.world_size == 1 and not trainer.sanity_checking and self.last:
            self._leave()

    def _leave(self) -> None:
        name, number = self.signal.name, self.loop.num_rounds
        log.info(f"{name}: round {number} is saved in {self.files.path / self.last}. {resume_command(self.run_folder)}")
        if self.trainer.is_global_zero and self.signal.asks_for_requeue(self.trainer):
            requeue()
        raise Preempted(f"ended by {name} after round {number}, which is saved")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the state before a failed round if possible, and print how to resume."""
        if isinstance(exception, Preempted) or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.before is not None and self.before.name != self.last and getattr(pl_module, "intact", False):
            self.place, trainer.should_stop = self.before.place, self.before.should_stop
            try:
                self.save(self.before.name, self.before)
            except CheckpointError as error:
                log.error(str(error))
        if not self.reporter.is_here(trainer):
            return
        # The newest file may not be noted yet, and the checkpoint of a resume exists before the run has begun.
        last = next((self.files.path / name for name in self.files.names()), None) if self.begun else trainer.ckpt_path
        if last and (self.begun or isinstance(exception, KeyboardInterrupt)):
            line = f"The last checkpoint is {last}. {resume_command(self.run_folder)}"
            print_last(exception, line, trainer.world_size)
        elif isinstance(exception, KeyboardInterrupt):
            log.warning("Interrupted before the first checkpoint: see --save_every.")
