"""The checkpoint that a command uses, and a one-line error if there is none."""

from __future__ import annotations

from pathlib import Path

from mrg.errors import UserError
from mrg.log import log
from mrg.run.checkpoint_file import META, check_ours
from mrg.run.checkpoints import BEST, CheckpointFolder
from mrg.run.find import list_runs


def to_resume(files: CheckpointFolder, resume: str, setting: str) -> Path | None:
    """Return the checkpoint from which `fit` resumes; None if the run starts from the beginning.

    Args:
        files: The run's own checkpoints.
        resume: A path, `"auto"` for the newest intact checkpoint of the run, or empty.
        setting: Option that names it, for the message.

    Raises:
        UserError: If it does not exist, is damaged, is not one of ours, or belongs to another run although the folder
            already contains a run.
    """
    if resume == "auto":
        path, damaged = files.newest()
        if damaged and path is None:
            raise UserError(
                f"All checkpoints in {files.path} are damaged: start over with --overwrite true and without --resume. "
                f"{damaged[0]}"
            )
        for line in damaged:
            log.warning(f"{line} Using the checkpoint before it.")
        return path
    if not resume:
        return None
    _check_place(Path(resume), setting)
    _check(Path(resume))
    if setting == "--resume":
        _check_own(Path(resume).resolve(), files)
    return Path(resume)


def _check_own(path: Path, files: CheckpointFolder) -> None:
    """Refuse another run's checkpoint if the folder contains a run that could be resumed."""
    folder = files.path.parent
    if path.parent == files.path.resolve() or not (folder / "config.yaml").is_file():
        return
    raise UserError(
        f"{path} is a checkpoint of the run {path.parents[1]}, but {folder} already contains a run: resume it with "
        "--resume auto, or choose a new --name for a run that starts from this checkpoint."
    )


def to_use(path: Path, sharding: bool) -> None:
    """Check a checkpoint that `--ckpt_path` names for any command but `fit`.

    Args:
        path: A file, or a folder with one file per rank.
        sharding: Whether the strategy reads such folders.

    Raises:
        UserError: If it does not exist, is damaged, is not one of ours, or is a folder that cannot be read.
    """
    _check_place(path, "--ckpt_path")
    if path.is_dir() and not sharding:
        raise UserError(
            f"Checkpoint {path} has one file per rank: add --config configs/strategy/fsdp.yaml, or convert it to one "
            f"file with python -m lightning.fabric.utilities.consolidate_checkpoint {path}."
        )
    _check(path)


def best_of(folder: Path, policy: str, starting: bool = False) -> Path | None:
    """Return the best checkpoint of a run; None if the starting policy is used as it is.

    Args:
        folder: Folder of the run, in the folder of all runs.
        policy: Its `model.init_args.policy`.
        starting: Whether to use this policy, which must not be done in the folder of a run.

    Raises:
        UserError: If there is no run, or it has no checkpoint; or if the starting policy is untrained, or would write
            into the folder of a run.
    """
    files = CheckpointFolder(folder / "checkpoints")
    best = files.path / BEST
    if starting and (best.exists() or (folder / "config.yaml").is_file()):
        raise UserError(f"{folder} contains a trained run: choose another --name for the starting policy.")
    if best.exists():
        return best
    if (folder / "config.yaml").is_file():
        names = files.names()
        last = f" To use its last one, pass --ckpt_path {files.path / names[0]}." if names else ""
        raise UserError(
            f"No checkpoint {best}: it was removed, or the run ended before its first validation, see "
            f"trainer.val_check_interval.{last}"
        )
    if policy == "tiny":
        raise UserError(
            f"No checkpoint {best}, and a tiny policy is untrained: run `fit` first, or pass --ckpt_path. "
            f"{list_runs(folder.parent)}"
        )
    if not starting:
        raise UserError(
            f"No checkpoint {best}, and no run in {folder}. {list_runs(folder.parent)} To use {policy} itself, without "
            "training, pass --starting_policy true."
        )
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
        f"{path} is {_kind(path)}, not a checkpoint"
        + (f": did you mean {setting} {inside}?" if inside else f", and contains none: check {setting}.")
    )


def _kind(folder: Path) -> str:
    if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
        return "the folder of a run"
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return "a policy for model.init_args.policy"
    return "a folder"


def _inside(folder: Path, newest: bool) -> Path | None:
    """Return a checkpoint in the folder of a run or of checkpoints: the newest to resume from, else the best."""
    for files in (CheckpointFolder(folder / "checkpoints"), CheckpointFolder(folder)):
        names = files.names()
        best = [BEST] if (files.path / BEST).exists() else []
        for name in [*names, *best] if newest else [*best, *names]:
            return files.path / name
    return None
