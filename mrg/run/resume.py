"""A run that goes on: what its checkpoint says, the folder as it was then, and what there is left to train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L

from mrg.errors import UserError
from mrg.files import cut_lines
from mrg.run.checkpoints import BEST, UNVALIDATED, CheckpointFolder, checkpoint_name
from mrg.run.rng import set_rng_state


@dataclasses.dataclass
class Best:
    """The best checkpoint so far.

    Args:
        name: Its file; empty where there is none.
        score: What it scored.
        monitor: By which score it was chosen.
    """

    name: str
    score: float
    monitor: str


@dataclasses.dataclass
class Resumed:
    """What a run needs of the checkpoint that it goes on from, once the data are there.

    Args:
        path: Of the checkpoint.
        state: What `Checkpoints` wrote into it.
        number: Of the last round in it.
        rank: What this process had of its own.
    """

    path: Path
    state: dict[str, Any]
    number: int
    rank: dict[str, Any]

    @classmethod
    def read(cls, trainer: L.Trainer, checkpoint: dict[str, Any], key: str) -> Resumed:
        """Take it from a checkpoint.

        Args:
            trainer: That reads it.
            checkpoint: Its content.
            key: Of the callback that wrote `state`.

        Raises:
            ValueError: If the checkpoint is not one of ours, or was written by more or fewer processes.
        """
        state = checkpoint.get("callbacks", {}).get(key)
        if state is None or "ranks" not in checkpoint:
            raise UserError(
                f"{trainer.ckpt_path} holds no state to go on from: resume from a round-*.ckpt of `python -m mrg fit`."
            )
        if len(checkpoint["ranks"]) != trainer.world_size:
            raise UserError(
                f"{trainer.ckpt_path} was written by {len(checkpoint['ranks'])} processes, but this run has "
                f"{trainer.world_size}: use as many (trainer.devices, trainer.num_nodes)."
            )
        number = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
        return cls(Path(str(trainer.ckpt_path)), state, number, checkpoint["ranks"][trainer.global_rank])

    @property
    def name(self) -> str:
        """What the run itself calls such a checkpoint."""
        return checkpoint_name(self.number, self.state["place"] != UNVALIDATED)

    def is_in(self, files: CheckpointFolder) -> bool:
        """Whether the checkpoint is one of a run's own."""
        return self.path.resolve().parent == files.path.resolve()

    def put_back(self, module: L.LightningModule) -> None:
        """Give this process what it had of its own, right before the first batch."""
        for name, parameter in module.named_parameters():
            if name in self.rank["gradients"]:
                parameter.grad = self.rank["gradients"][name].to(parameter.device)
        set_rng_state(self.rank["rng"])
        self.rank = {}


def clean(
    folder: Path, files: CheckpointFolder, resumed: Resumed | None, monitor: str, begin: Callable[[], None] | None
) -> Best | None:
    """Make a run's folder what it was when the checkpoint was written, and say where the run goes on.

    Args:
        folder: The run's.
        files: Its checkpoints.
        resumed: None where the run starts at its beginning.
        monitor: Score by which the best is chosen from now on.
        begin: Makes room in the folder; called where a run starts anew.

    Returns:
        The best checkpoint at that time, where it is there and whole.
    """
    if resumed is None or not resumed.is_in(files):
        if begin is not None:
            begin()
        files.remove_after("")  # a new run, perhaps from another's state
        if resumed is not None:
            print(f"Going on after round {resumed.number} of {resumed.path} in folder {folder}.", flush=True)
        return None
    print(f"Resuming after round {resumed.number} from {resumed.path}.", flush=True)
    best = _best(files, resumed.state, monitor)
    name = "" if best is None else best.name
    if resumed.path.name == resumed.name:
        files.adopt(resumed.name, name)
    if removed := files.remove_after(resumed.name):
        print(f"Removed what came after it: {', '.join(removed)}.", flush=True)
    if name:
        files.set_best(name)
    for file, count in resumed.state["lines"].items():
        held = cut_lines(folder / file, count)
        if held < count:
            print(f"{folder / file} holds {held} of {count} lines: its history has a gap.", flush=True)
    return best


def _best(files: CheckpointFolder, state: dict[str, Any], monitor: str) -> Best | None:
    if not state["best"]:
        return None
    if problem := files.problem(state["best"]):
        print(f"{problem} It was the best: the best to come takes its place.", flush=True)
        if files.problem(BEST):
            files.remove_best()
        return None
    if state["monitor"] != monitor:
        print(f"Its best by {state['monitor']} stays until there is one by {monitor}.", flush=True)
    return Best(state["best"], state["score"], state["monitor"])


def nothing_left(trainer: L.Trainer) -> str:
    """Why a run that is about to train will not, and what to raise, in one line; empty where it will."""
    loop = trainer.fit_loop
    if not loop.skip:
        return ""
    progress: Any = loop.epoch_progress.current
    step, epoch = trainer.global_step, progress.processed
    if -1 < trainer.max_steps <= step:
        reason = f"trainer.max_steps is {trainer.max_steps}: raise it to train on"
    elif trainer.max_epochs is not None and -1 < trainer.max_epochs <= epoch:
        reason = f"trainer.max_epochs is {trainer.max_epochs}, of which {epoch} are done: raise it to train on"
    elif trainer.should_stop:
        reason = "it had ended early there (early stopping, or trainer.max_time): start a new run from its policy"
    else:
        reason = "there are no training batches: see trainer.limit_train_batches"
    return f"Nothing is left to train: the run is at step {step}, and {reason}."
