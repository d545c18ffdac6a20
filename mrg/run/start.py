"""Starting a run from the policy of another one: `fit --from RUN`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrg.errors import UserError
from mrg.files import read_config
from mrg.run.find import find_run

INPUTS = ("prompt", "think", "max_pixels", "max_study_pixels", "max_views", "use_indication", "use_prior")
"""Settings in `model.init_args` that a policy has learned to expect."""


def start_from(config: Any) -> list[str]:
    """Set the policy of a configuration for `fit` to that of the run in its key `from`, which is cleared.

    Returns:
        Sentences on settings of the inputs that the policy has not learned to expect.
    """
    if not config["from"]:
        return []
    policy = policy_of(str(config["from"]), Path(str(config.runs)))
    config.model.init_args.policy, config["from"] = str(policy), ""
    return changed_inputs(policy, vars(config.model.init_args))


def policy_of(word: str, runs: Path) -> Path:
    """Return the policy folder that `--from` names.

    Args:
        word: A run, as in `find_run`, or the folder of a policy.
        runs: Folder of all runs.

    Raises:
        NotFoundError: If there is no such run; the message suggests a similar name and lists the runs.
        UserError: If the run has no policy, or a checkpoint file is named.
    """
    path = Path(word)
    if (path / "config.json").is_file():
        return path
    if path.suffix == ".ckpt":
        folder = path.parents[1] if len(path.parents) > 1 else path.parent
        raise UserError(
            f"Expected --from to name a run or the folder of a policy, but {path} is a checkpoint. Write its policy "
            f"with `python -m mrg export {folder} --ckpt_path {path} --output FOLDER`, then pass --from FOLDER."
        )
    folder = find_run(word, runs)
    if not (folder / "policy" / "config.json").is_file():
        raise UserError(
            f"{folder} has no policy to start from: `fit` writes {folder / 'policy'} when it ends and a validation has "
            f"chosen a checkpoint. Resume it with `python -m mrg fit --config {folder / 'config.yaml'} --resume auto`, "
            f"or write the policy of its best checkpoint so far with `python -m mrg export {folder} --output "
            f"{folder / 'policy'}`."
        )
    return folder / "policy"


def changed_inputs(policy: Path, settings: Mapping[str, Any]) -> list[str]:
    """Describe each setting of the inputs that differs from those of the run that trained a policy.

    Args:
        policy: Folder of the policy; if it is not in the folder of a run, there is nothing to compare.
        settings: `model.init_args` of the new run.
    """
    file = policy.parent / "config.yaml"
    if not file.is_file():
        return []
    trained = read_config(file).get("model", {}).get("init_args", {})
    return [
        f"model.init_args.{key} is {settings[key]!r}, but {policy} was trained with {trained[key]!r}."
        for key in INPUTS
        if key in trained and key in settings and settings[key] != trained[key]
    ]
