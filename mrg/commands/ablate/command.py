"""`python -m mrg ablate`: variants of one recipe, each with one change, over several seeds: one table, one figure.

A configuration names arms. An arm is a configuration for `fit` with some keys set, and may start from the policy of
another arm, which is trained once for each seed. Every run is an ordinary run folder, `<folder>/seed<n>/<arm>`. A run
that is complete is not repeated and an interrupted one is resumed, so that an ablation can be stopped, continued and
given further arms and seeds.

Choices: all arms are scored again from their predictions, with the same metrics and one margin. A seed determines the
data, the weights and the rollouts, so intervals over seeds include the variance of all three.
"""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mrg.commands.ablate.configuration import RECORD, Ablation, load_ablation, parse_keys
from mrg.errors import RunError, one_line, print_error


def main(args: Sequence[str]) -> None:
    """Parse the options and run the ablation."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m mrg ablate",
        description="Train variants of a configuration over several seeds: one table, one figure.",
    )
    add = parser.add_argument
    add("-c", "--config", type=str, required=True, help="configuration, for example configs/demo_ablation.yaml")
    add("--quick", action="store_true", help="few steps and two seeds: runs every stage, but learns nothing")
    add("--folder", type=str, default="", help="folder of the runs, instead of the configuration's")
    add("--num_processes", type=int, default=0, help="number of concurrent runs, instead of the configuration's")
    add("--report", action="store_true", help="do not train: write the table and the figure of the existing runs")
    add("--set", type=str, action="append", default=[], help="KEY=VALUE for every arm, in place of its own value")
    options = parser.parse_args(list(args))
    ablation = load_ablation(Path(options.config), options.quick)
    if options.folder:
        ablation = dataclasses.replace(ablation, folder=Path(options.folder))
    ablation = ablation.with_keys(parse_keys(options.set))
    if options.num_processes:
        ablation = dataclasses.replace(ablation, num_processes=options.num_processes)
    try:
        failed = {} if options.report else run_all(ablation)
    except SystemExit:
        print("mrg: a signal ended a run. The same command continues it and those that are missing.", file=sys.stderr)
        raise
    from mrg.commands.ablate.report import write_report

    print(f"\n{write_report(ablation)}", flush=True)
    if failed:
        first, reason = next(iter(failed.items()))
        raise RunError(f"{len(failed)} of the runs failed, the first one was {first}: {reason}")


def run_all(ablation: Ablation) -> dict[str, str]:
    """Make the runs that are missing.

    Returns:
        Run -> reason, for runs that failed; an arm that starts from one of them is not run.

    Raises:
        SystemExit: If a signal ended a run; no other run is started.
        UserError: If a run was made with other settings than the configuration's.
    """
    # Seed by seed: the data of a seed are cached in memory.
    wanted = [(name, seed) for seed in ablation.seeds for name in ablation.arms]
    waiting = [job for job in wanted if not ablation.is_complete(*job)]
    done = len(wanted) - len(waiting)
    print(f"{len(wanted)} runs in {ablation.folder}, {done} of them complete.", flush=True)
    started, failed = time.monotonic(), {}
    running: dict[futures.Future[str], tuple[str, int, float]] = {}
    with _pool(ablation.num_processes) as pool:
        while waiting or running:
            for name, seed in list(waiting):
                start = ablation.arms[name].start
                unfinished = (start, seed) in [*waiting, *(job[:2] for job in running.values())]
                if f"seed{seed}/{start}" in failed:
                    failed[f"seed{seed}/{name}"] = f"{start}, which it starts from, failed"
                    waiting.remove((name, seed))
                elif not unfinished and len(running) < ablation.num_processes:
                    running[pool.submit(run_one, ablation, name, seed)] = (name, seed, time.monotonic())
                    waiting.remove((name, seed))
            for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                name, seed, begun = running.pop(future)
                done += 1
                now, result = time.monotonic(), f"{time.monotonic() - begun:.0f} s"
                if reason := future.result():
                    failed[f"seed{seed}/{name}"] = reason
                    result = f"failed: {reason}"
                print(f"[{now - started:5.0f} s] {done}/{len(wanted)} seed {seed}, {name}: {result}", flush=True)
    return failed


def run_one(ablation: Ablation, name: str, seed: int) -> str:
    """Run `fit` and `test`, with their output in `log.txt` of the run's folder.

    Returns:
        The reason of a failure; empty if there was none.

    Raises:
        SystemExit: If a signal ended the run, which has saved its state.
    """
    import torch

    from mrg.commands.lightning import run
    from mrg.files import write_json
    from mrg.log import configure
    from mrg.run.folder import make_run_folder

    if ablation.num_processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ablation.num_processes))
    folder, arm = ablation.run_folder(name, seed), ablation.arms[name]
    settings = ablation.settings(arm, seed)
    make_run_folder(folder, str(settings.get("shared")).lower() == "true")
    if arm.start:
        settings["model.init_args.policy"] = str(ablation.run_folder(arm.start, seed) / "policy")
    # Values are parsed as YAML, which includes JSON.
    options = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
    place = [f"--runs={folder.parent}", f"--name={name}", "--resume=auto"]
    log = folder / "log.txt"
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        configure()
        try:
            write_json(folder / RECORD, ablation.record(name, seed))
            if not (folder / "policy").is_dir():  # it is written at the end of training
                run(["fit", f"--config={ablation.configs / arm.config}", *options, *place])
            run(["test", f"--config={folder / 'config.yaml'}"])
        except SystemExit as stop:
            if stop.code != 2:  # not a wrong argument: a signal asks this process to end
                raise
            file.flush()
            return log.read_text(encoding="utf-8").strip().splitlines()[-1].removeprefix("mrg: ")
        except Exception as error:  # one run must not end the others
            print_error(error)
            return one_line(error) or f"{type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def _pool(num_processes: int) -> Iterator[Any]:
    """Pool of processes, each of which imports torch once; a single process is this one."""
    if num_processes == 1:
        yield _ThisProcess()
        return
    # Not forked: a process forked after torch has started threads can hang.
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        yield pool


class _ThisProcess:
    """Executor that runs a function at once, in this process."""

    def submit(self, function: Any, *args: Any) -> futures.Future[str]:
        future: futures.Future[str] = futures.Future()
        future.set_result(function(*args))
        return future
