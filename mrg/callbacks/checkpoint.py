"""Checkpoints from which a run goes on as if nothing had happened: same weights, same metrics, same predictions.

Saved at the boundaries of rounds (see `rounds.py`): what is trained, the optimiser and its schedule, counters, the
place in the order of studies, every global random generator of every process, the state of callbacks, and how long the
logs were. A signal to end (SIGTERM, or the one with which SLURM announces the end) lets the round finish, saves and
leaves.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from mrg.callbacks.checkpoint_folder import BEST, CheckpointFolder, checkpoint_name
from mrg.callbacks.preemption import Preempted, requeue, requeue_signal
from mrg.callbacks.rng import rng_state, set_rng_state
from mrg.callbacks.rounds import ROUND, UNVALIDATED, RoundLoop, install
from mrg.files import WriteError, count_lines, cut_lines
from mrg.modules.ranks import any_rank, gather


@dataclasses.dataclass
class Before:
    """What a failed round has changed although no weight has.

    Args:
        name: Checkpoint of the state after the round before.
        place: See `rounds.py`.
        should_stop: Whether training was to end there.
        rank: What this process has of its own.
        loops: Counters.
    """

    name: str
    place: str
    should_stop: bool
    rank: dict[str, Any]
    loops: dict[str, Any]


LOGS = ("metrics.csv", "samples.jsonl")
"""Files of the run folder to which training adds lines; a resumed run cuts what came after its checkpoint."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


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
                raise ValueError(f"Expected {name} to be at least 1, but got {value}.")
        self.run_folder, self.monitor, self.save_every = folder, monitor, save_every
        self.files = CheckpointFolder(folder / "checkpoints", keep)
        self.begin = begin
        self.best, self.score, self.scored_by = "", float("nan"), monitor
        self.last = ""
        self.begun = False
        self.place = ROUND
        self.validated = False
        self.signal = 0
        self.rank_state: dict[str, Any] = {}
        self.resumed: dict[str, Any] = {}
        self.number = 0
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
        ends = any_rank(bool(self.signal), trainer.world_size, trainer.strategy.root_device)
        last = trainer.should_stop or trainer.fit_loop.done or loop._is_training_done
        if place == UNVALIDATED or validated or ends or last or number % self.save_every == 0:
            self.place = place
            self.save(trainer, name)
        if ends:
            self._leave(trainer, number)
        # Manual optimisation: a round has a part before its first step, which may take long and can fail.
        if not trainer.lightning_module.automatic_optimization:
            loops = copy.deepcopy(trainer.fit_loop.state_dict())
            self.before = Before(name, place, trainer.should_stop, self._rank_state(trainer), loops)

    def _compare(self, trainer: L.Trainer, name: str) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(key for key in trainer.callback_metrics if key.startswith("val/")))
            raise ValueError(f"The run logs no {self.monitor!r} to choose its best checkpoint by; --monitor: {known}.")
        score = float(trainer.callback_metrics[self.monitor])
        better = score < self.score if self.monitor.endswith("loss") else score > self.score
        # Also the first one, one after a score that was not a number, and the first one by another score.
        if better or self.score != self.score or self.scored_by != self.monitor:
            self.best, self.score, self.scored_by = name, score, self.monitor

    def save(self, trainer: L.Trainer, name: str, before: Before | None = None) -> None:
        """Write the state of all ranks into one file.

        Args:
            trainer: Of the run.
            name: Of the file.
            before: Given where the present round failed before it changed a weight.

        Raises:
            CheckpointError: On all ranks, if it cannot be written.
        """
        problem = ""
        if trainer.is_global_zero:
            try:
                for logger in trainer.loggers:
                    logger.save()
            except WriteError as error:
                problem = str(error)
        # Sharded weights are gathered by all ranks.
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if before is not None:
            checkpoint["loops"]["fit_loop"] = before.loops
        own = self._rank_state(trainer) if before is None else before.rank
        checkpoint["ranks"] = gather(own, trainer.world_size)
        strategy = trainer.strategy
        parts = isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint
        if parts:
            problem = problem or self._write_parts(trainer, name, checkpoint)
        if trainer.is_global_zero and not problem:
            try:
                if parts:
                    self.files.take(name, self.best)
                else:
                    self.files.save(name, checkpoint, self.best)
            except WriteError as error:
                problem = str(error)
        problem = next(filter(None, gather(problem, trainer.world_size)), "")
        if problem:
            raise CheckpointError(f"The state of this round could not be saved: {problem}")
        self.last = name

    def _write_parts(self, trainer: L.Trainer, name: str, checkpoint: dict[str, Any]) -> str:
        """Let each rank write its part of sharded weights into one folder; returns what went wrong."""
        folder = self.files.unfinished(name)
        try:
            if trainer.is_global_zero:
                shutil.rmtree(folder, ignore_errors=True)
            trainer.strategy.barrier()
            trainer.strategy.save_checkpoint(checkpoint, folder)
        except Exception as error:  # torch gathers the errors of all ranks into one of its own, with tracebacks
            lines = str(error).strip().splitlines()
            return f"{folder} cannot be written ({lines[-1].strip() if lines else type(error).__name__})."
        return ""

    def state_dict(self) -> dict[str, Any]:
        """The place, the best checkpoint, and how long the logs are."""
        trainer = self.trainer
        return {
            "place": self.place,
            "best": self.best,
            "score": self.score,
            "monitor": self.scored_by,
            "should_stop": bool(trainer is not None and trainer.should_stop),
            "lines": {name: count_lines(self.run_folder / name) for name in LOGS},
        }

    def _rank_state(self, trainer: L.Trainer) -> dict[str, Any]:
        """What each process has of its own: generators, and gradients that wait for more batches."""
        assert self.loop is not None
        waiting = trainer.accumulate_grad_batches > 1 and self.loop._should_accumulate()
        own = trainer.lightning_module.named_parameters() if waiting else []
        return {"rng": rng_state(), "gradients": {name: p.grad.cpu() for name, p in own if p.grad is not None}}

    # Resuming

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed when the data are there.

        Raises:
            ValueError: If the checkpoint is not one of ours, or was written by more or fewer processes.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None or "ranks" not in checkpoint:
            raise ValueError(
                f"{trainer.ckpt_path} holds no state to go on from: resume from a round-*.ckpt of `python -m mrg fit`."
            )
        if len(checkpoint["ranks"]) != trainer.world_size:
            raise ValueError(
                f"{trainer.ckpt_path} was written by {len(checkpoint['ranks'])} processes, but this run has "
                f"{trainer.world_size}: use as many (trainer.devices, trainer.num_nodes)."
            )
        assert self.loop is not None
        self.loop.resumed = state["place"]
        self.resumed, self.rank_state = state, checkpoint["ranks"][trainer.global_rank]
        self.number = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
        trainer.should_stop = state["should_stop"]

    def take_up(self) -> None:
        """Make the run folder what it was when the checkpoint was written; all checks are behind us."""
        trainer, state = self.trainer, self.resumed
        assert trainer is not None
        if trainer.is_global_zero:
            self._clean(trainer, state)
        self.begun = True
        agreed = (self.best, self.score, self.scored_by, self.last)
        self.best, self.score, self.scored_by, self.last = trainer.strategy.broadcast(agreed)

    def _clean(self, trainer: L.Trainer, state: dict[str, Any]) -> None:
        path = Path(str(trainer.ckpt_path))
        name = checkpoint_name(self.number, state.get("place") != UNVALIDATED)
        if not state or path.resolve().parent != self.files.path.resolve():
            if self.begin is not None:
                self.begin()
            self.files.remove_after("")  # a new run, perhaps from another's state
            return
        print(f"Resuming after round {self.number} from {path}.", flush=True)
        if state["best"]:
            if problem := self.files.problem(state["best"]):
                print(f"{problem} It was the best: the best to come takes its place.", flush=True)
                if self.files.problem(BEST):
                    self.files.remove_best()
            else:
                self.best, self.score, self.scored_by = state["best"], state["score"], state["monitor"]
                if self.scored_by != self.monitor:
                    print(f"Its best by {self.scored_by} stays until there is one by {self.monitor}.", flush=True)
        self.last = name
        if path.name == name:
            self.files.adopt(name, self.best)
        if removed := self.files.remove_after(name):
            print(f"Removed what came after it: {', '.join(removed)}.", flush=True)
        if self.best:
            self.files.set_best(self.best)
        for file, count in state["lines"].items():
            held = cut_lines(self.run_folder / file, count)
            if held < count:
                print(f"{self.run_folder / file} holds {held} of {count} lines: its history has a gap.", flush=True)

    def before_rounds(self) -> None:
        """Put back what this process had of its own, right before the first batch."""
        assert self.trainer is not None
        for name, parameter in self.trainer.lightning_module.named_parameters():
            if name in self.rank_state["gradients"]:
                parameter.grad = self.rank_state["gradients"][name].to(parameter.device)
        set_rng_state(self.rank_state["rng"])
        self.rank_state = {}

    # Ending

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Catch the signals that announce an end, in the place of Lightning, which would not finish the round.

        Under SLURM with requeueing, Lightning would also save a checkpoint of its own in the middle of a round.
        """
        connector = trainer._signal_connector
        self.signal = int(signal.SIGTERM) if connector.received_sigterm else 0
        connector.received_sigterm = False
        signals = {int(signal.SIGTERM)}
        if (number := requeue_signal(trainer)) is not None:
            signals.add(number)
        for number in signals:
            # Lightning puts the former handlers back when training has ended.
            connector._register_signal(signal.Signals(number), self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.signal = number

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Leave a validation: the state before it is saved. Several processes end it first, they cannot agree here."""
        if self.signal and trainer.world_size == 1 and not trainer.sanity_checking and self.last:
            assert self.loop is not None
            self._leave(trainer, self.loop.batch_progress.total.completed)

    def _leave(self, trainer: L.Trainer, number: int) -> None:
        name = signal.Signals(self.signal or signal.SIGTERM).name
        if trainer.is_global_zero:
            print(
                f"{name}: round {number} is saved in {self.files.path / self.last}. {self.how_to_go_on()}", flush=True
            )
            if self.signal and self.signal == requeue_signal(trainer):
                requeue()
        raise Preempted(f"ended by {name} after round {number}, which is saved")

    def how_to_go_on(self) -> str:
        """The command with which to resume."""
        return f"Go on with: python -m mrg fit --config {self.run_folder / 'config.yaml'} --resume auto"

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
        if not trainer.is_global_zero:
            return
        # What was written last may not be noted yet, and what a run resumes from is there before it has begun.
        last = next((self.files.path / name for name in self.files.names()), None) if self.begun else trainer.ckpt_path
        if last and (self.begun or isinstance(exception, KeyboardInterrupt)):
            print(f"\nThe last checkpoint is {last}. {self.how_to_go_on()}", flush=True)
        elif isinstance(exception, KeyboardInterrupt):
            print("\nInterrupted before the first checkpoint: see --save_every.", flush=True)
