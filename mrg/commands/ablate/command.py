"""`python -m mrg ablate`: one recipe with one thing changed at a time, over several seeds; one table, one figure.

A configuration names arms. An arm is a file for `fit` with some keys set, and may start from the policy of another arm,
which is then trained once for each seed. Every run is an ordinary run folder, `<folder>/seed<n>/<arm>`; a run that is
complete is not made again and one that was broken off goes on, so that an ablation can be stopped and started again, or
given further arms and seeds.

Choices: all arms are scored again here, from their predictions, by the same metrics and one margin. A seed changes the
data, the weights and the rollouts, so intervals over seeds cover all three.
"""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mrg.errors import RunError, UserError, one_line, print_error

RECORD = "arm.json"
"""What a run of an ablation was made with: beside its config.yaml."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        config: File for `fit`, beside the ablation's own configuration.
        start: Arm whose policy this one starts from; empty where the file says it.
        label: What the table and the figure call it; the arm's name by default.
        set: Keys of the configuration -> values. `"{seed}"` becomes the seed.
    """

    config: str
    start: str = ""
    label: str = ""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What `configs/demo_ablation.yaml` says.

    Args:
        folder: Of the runs and the results.
        seeds: One run of each arm for each.
        arms: Name -> arm, an arm after the one it starts from.
        base: The arm that the others are compared with.
        panels: Title -> names of the arms that a panel of the figure shows, top to bottom.
        margin: Of the MCCS by which all are judged.
        num_processes: Runs at a time; each takes its share of the cores.
        shared: Keys set in every arm; an arm's own come after them.
        quick: File for `fit` -> keys that `--quick` sets.
        configs: Folder of the files for `fit`.
    """

    folder: Path
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    base: str
    panels: dict[str, list[str]]
    margin: float = 0.5
    num_processes: int = 1
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)
    quick: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    configs: Path = Path()

    def __post_init__(self) -> None:
        """Check that names are those of arms."""
        if not 1 <= len(self.seeds) <= 10 or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"Expected `seeds` to hold 1 to 10 different numbers, but got {list(self.seeds)}.")
        if self.num_processes < 1:
            raise UserError(f"Expected `num_processes` to be at least 1, but got {self.num_processes}.")
        before: list[str] = [""]
        for name, arm in self.arms.items():
            if arm.start not in before:
                raise UserError(f"Expected arm {name!r} to start from an arm above it, but got {arm.start!r}.")
            if not (self.configs / arm.config).is_file():
                raise UserError(f"Expected `config` of arm {name!r} to be a file, but got {self.configs / arm.config}.")
            before.append(name)
        for where, names in {"base": [self.base], **{f"panels: {k}": v for k, v in self.panels.items()}}.items():
            unknown = [name for name in names if name not in self.arms]
            if unknown:
                raise UserError(f"Expected `{where}` to name arms ({', '.join(self.arms)}), but got {unknown[0]!r}.")

    def settings(self, arm: Arm, seed: int) -> dict[str, Any]:
        """All keys that a run sets."""
        keys = {**self.shared, **arm.set}
        return {key: seed if value == "{seed}" else value for key, value in keys.items()}

    def run_folder(self, name: str, seed: int) -> Path:
        """Where a run is."""
        return self.folder / f"seed{seed}" / name


def load_ablation(path: Path, quick: bool = False) -> Ablation:
    """Read a configuration.

    Raises:
        ValueError: If the file is missing, no YAML, or says something else than an ablation needs.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        arms = {name: Arm(**arm) for name, arm in values.pop("arms").items()}
        given = {**values, "folder": Path(values["folder"]), "seeds": tuple(values["seeds"]), "arms": arms}
        ablation = Ablation(**given, configs=path.parent)
    except (OSError, yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"Expected {path} to be the configuration of an ablation, but: {error}.") from error
    if not quick:
        return ablation
    arms = {
        name: dataclasses.replace(arm, set=arm.set | ablation.quick.get(arm.config, {})) for name, arm in arms.items()
    }
    folder = ablation.folder.with_name(f"{ablation.folder.name}-quick")
    return dataclasses.replace(ablation, arms=arms, folder=folder, seeds=ablation.seeds[:2])


def main(args: Sequence[str]) -> None:
    """Parse the options and run the ablation."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m mrg ablate", description="Arms over seeds: one table, one figure.")
    parser.add_argument("-c", "--config", type=str, required=True, help="for example configs/demo_ablation.yaml")
    parser.add_argument("--quick", action="store_true", help="few steps, two seeds: shows every stage, learns nothing")
    parser.add_argument("--folder", type=str, default="", help="of the runs, in place of the configuration's")
    parser.add_argument("--num_processes", type=int, default=0, help="runs at a time, in place of the configuration's")
    parser.add_argument(
        "--report", action="store_true", help="train nothing: the table and the figure of what is there"
    )
    options = parser.parse_args(list(args))
    ablation = load_ablation(Path(options.config), options.quick)
    if options.folder:
        ablation = dataclasses.replace(ablation, folder=Path(options.folder))
    if options.num_processes:
        ablation = dataclasses.replace(ablation, num_processes=options.num_processes)
    failed = {} if options.report else run_all(ablation)
    from mrg.commands.ablate.report import write_report

    print(f"\n{write_report(ablation)}", flush=True)
    if failed:
        first, reason = next(iter(failed.items()))
        raise RunError(f"{len(failed)} of the runs failed, the first one was {first}: {reason}")


def run_all(ablation: Ablation) -> dict[str, str]:
    """Make the runs that are missing.

    Returns:
        Runs that failed, and why; an arm that starts from one of them is not run.

    Raises:
        ValueError: If a run was made with other settings than the configuration's.
    """
    # All of one seed first: its data, which is kept in memory, is read once.
    wanted = [(name, seed) for seed in ablation.seeds for name in ablation.arms]
    todo = [job for job in wanted if not is_complete(ablation, *job)]
    print(f"{len(wanted)} runs in {ablation.folder}, {len(wanted) - len(todo)} of them complete.", flush=True)
    started, failed = time.monotonic(), {}
    waiting, done = list(todo), len(wanted) - len(todo)
    with _pool(ablation.num_processes) as pool:
        running: dict[futures.Future[str], tuple[str, int, float]] = {}
        while waiting or running:
            for name, seed in list(waiting):
                start = ablation.arms[name].start
                if f"seed{seed}/{start}" in failed:
                    failed[f"seed{seed}/{name}"] = f"{start}, which it starts from, failed"
                    waiting.remove((name, seed))
                elif (start, seed) not in [*waiting, *(job[:2] for job in running.values())] and len(
                    running
                ) < ablation.num_processes:
                    running[pool.submit(run_one, ablation, name, seed)] = (name, seed, time.monotonic())
                    waiting.remove((name, seed))
            for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                name, seed, begun = running.pop(future)
                done += 1
                reason = future.result()
                if reason:
                    failed[f"seed{seed}/{name}"] = reason
                now = time.monotonic()
                print(
                    f"[{now - started:5.0f} s] {done}/{len(wanted)} seed {seed}, {name}: "
                    f"{f'failed: {reason}' if reason else f'{now - begun:.0f} s'}",
                    flush=True,
                )
    return failed


def is_complete(ablation: Ablation, name: str, seed: int) -> bool:
    """Whether a run is there.

    Raises:
        ValueError: If it was made with other settings.
    """
    folder = ablation.run_folder(name, seed)
    if not (folder / RECORD).is_file():
        return False
    old, new = json.loads((folder / RECORD).read_text(encoding="utf-8")), _record(ablation, name, seed)
    if old != new:
        other = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        raise UserError(
            f"Run {folder} was made with other settings ({', '.join(other)}) than the configuration's: delete it, or "
            "choose another --folder."
        )
    return (folder / "predictions.jsonl").is_file()


def run_one(ablation: Ablation, name: str, seed: int) -> str:
    """`fit` and `test`, printing to `log.txt` in the run's folder.

    Returns:
        Why it failed; empty where it did not.
    """
    import torch

    from mrg.commands.lightning import run
    from mrg.files import write_json
    from mrg.log import configure

    if ablation.num_processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ablation.num_processes))
    folder, arm = ablation.run_folder(name, seed), ablation.arms[name]
    folder.mkdir(parents=True, exist_ok=True)
    settings = ablation.settings(arm, seed)
    if arm.start:
        settings["model.init_args.policy"] = str(ablation.run_folder(arm.start, seed) / "policy")
    # A value is YAML, of which JSON is a part.
    options = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
    place = [f"--runs={folder.parent}", f"--name={name}", "--resume=auto"]
    log = folder / "log.txt"
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        configure()
        try:
            write_json(folder / RECORD, _record(ablation, name, seed))
            if not (folder / "policy").is_dir():  # it is written when training ends
                run(["fit", f"--config={ablation.configs / arm.config}", *options, *place])
            run(["test", f"--config={folder / 'config.yaml'}"])
        except SystemExit:
            file.flush()
            return log.read_text(encoding="utf-8").strip().splitlines()[-1].removeprefix("mrg: ")
        except Exception as error:  # one run must not end the others
            print_error(error)
            return one_line(error) or f"{type(error).__name__}: {error}"
    return ""


def _record(ablation: Ablation, name: str, seed: int) -> dict[str, Any]:
    """What decides a run, as JSON gives it back: the file's keys and the arm's, through all the arms it starts from."""
    import yaml

    arm = ablation.arms[name]
    text = (ablation.configs / arm.config).read_text(encoding="utf-8")
    record = {"config": yaml.safe_load(text), **ablation.settings(arm, seed)}
    if arm.start:
        record["start"] = _record(ablation, arm.start, seed)
    values: dict[str, Any] = json.loads(json.dumps(record))
    return values


@contextlib.contextmanager
def _pool(num_processes: int) -> Iterator[Any]:
    """Processes that stay, so that each imports torch once; one run at a time needs none."""
    if num_processes == 1:
        yield _Here()
        return
    # A fresh process: one forked after torch has started threads can hang.
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        yield pool


class _Here:
    """Runs at once, in this process, what is submitted."""

    def submit(self, function: Any, *args: Any) -> futures.Future[str]:
        future: futures.Future[str] = futures.Future()
        future.set_result(function(*args))
        return future
