"""Which checkpoint a command takes, and one line where it can take none."""

from __future__ import annotations

from pathlib import Path

from mrg.errors import UserError
from mrg.modules.ranks import say
from mrg.run.checkpoint_file import META, check_ours
from mrg.run.checkpoints import BEST, CheckpointFolder


def to_resume(files: CheckpointFolder, resume: str, setting: str) -> Path | None:
    """The checkpoint that `fit` goes on from.

    Args:
        files: The run's own.
        resume: A path, `"auto"` for the newest of the run's that is whole, or empty.
        setting: What named it, for the message.

    Returns:
        Its path; None where the run starts at its beginning.

    Raises:
        UserError: If it is not there, all are damaged, or it is another run's although the folder holds a run.
        ValueError: If it is damaged, or no checkpoint of ours.
    """
    if resume == "auto":
        path, damaged = files.newest()
        if damaged and path is None:
            raise UserError(
                f"No checkpoint in {files.path} is whole: start anew with --overwrite true and without --resume. "
                f"{damaged[0]}"
            )
        for line in damaged:
            say(f"{line} The one before it is used.")
        return path
    if not resume:
        return None
    _check_place(Path(resume), setting)
    _check(Path(resume))
    if setting == "--resume":
        _check_own(Path(resume).resolve(), files)
    return Path(resume)


def _check_own(path: Path, files: CheckpointFolder) -> None:
    """Refuse another run's checkpoint where there is a run to go on with."""
    folder = files.path.parent
    if path.parent == files.path.resolve() or not (folder / "config.yaml").is_file():
        return
    raise UserError(
        f"{path} is a checkpoint of the run {path.parents[1]}, but run folder {folder} holds a run of its own: go on "
        "with that one by --resume auto, or choose a new --name for a run that goes on from the other's checkpoint."
    )


def to_use(path: Path, sharding: bool) -> None:
    """Check a checkpoint that `--ckpt_path` names for anything but training.

    Args:
        path: A file, or a folder of one file per rank.
        sharding: Whether the strategy reads such folders.

    Raises:
        UserError: If it is not there, or a folder that is none or cannot be read so.
        ValueError: If it is damaged, or no checkpoint of ours.
    """
    _check_place(path, "--ckpt_path")
    if path.is_dir() and not sharding:
        raise UserError(
            f"Checkpoint {path} has one file per rank: add --config configs/strategy/fsdp.yaml, or "
            f"make one file of it: python -m lightning.fabric.utilities.consolidate_checkpoint {path}."
        )
    _check(path)


def best_of(folder: Path, policy: str) -> Path | None:
    """A run's best checkpoint.

    Args:
        folder: The run's.
        policy: Its `model.init_args.policy`.

    Returns:
        Its path; None where the published policy is taken as it is.

    Raises:
        UserError: If a run has none, or there is no run and the policy is untrained.
    """
    files = CheckpointFolder(folder / "checkpoints")
    best = files.path / BEST
    if best.exists():
        return best
    if (folder / "config.yaml").is_file():
        names = files.names()
        last = f" Its last one is scored with --ckpt_path {files.path / names[0]}." if names else ""
        raise UserError(
            f"No checkpoint {best}: it was removed, or the run ended before its first validation, see "
            f"trainer.val_check_interval.{last}"
        )
    if policy == "tiny":
        raise UserError(f"No checkpoint {best}, and a tiny policy is untrained: run `fit` first, or pass --ckpt_path.")
    return None


def _check(path: Path) -> None:
    CheckpointFolder(path.parent).check(path)
    check_ours(path)


def _check_place(path: Path, setting: str) -> None:
    if not path.exists():
        raise UserError(f"Checkpoint {path} does not exist: check {setting}.")
    if not path.is_dir() or (path / META).is_file():
        return
    inside = _inside(path, newest=setting == "--resume")
    raise UserError(
        f"{path} is {_kind(path)} and no checkpoint"
        + (f": did you mean {setting} {inside}?" if inside else f", nor is there one in it: check {setting}.")
    )


def _kind(folder: Path) -> str:
    if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
        return "a run's folder"
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return "a policy for model.init_args.policy"
    return "a folder"


def _inside(folder: Path, newest: bool) -> Path | None:
    """A checkpoint in a folder of a run, or of checkpoints: the best one, or to go on from, the newest."""
    for files in (CheckpointFolder(folder / "checkpoints"), CheckpointFolder(folder)):
        names = files.names()
        best = [BEST] if (files.path / BEST).exists() else []
        for name in [*names, *best] if newest else [*best, *names]:
            return files.path / name
    return None
