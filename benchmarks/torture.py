"""Kill a GRPO run at random moments, resume it, and compare it bit for bit with an uninterrupted run.

    python benchmarks/torture.py --trials 50 --output benchmarks/results/torture

A trial runs `python -m mrg fit --resume auto`, interrupted by one to three `kill -9`, and then to its end. Four in ten
kills come at a random time of the run, the others a few milliseconds after a file in the checkpoint folder began to be
written. In some trials the newest checkpoint is also truncated after the kill. Finally `test` writes predictions. The
comparison covers all tensors of the last and the best checkpoint (weights, optimizer, generators, counters),
metrics.csv without its times, samples.jsonl, the exported policy and predictions.jsonl.

The last trial fills the disk of a run, on a 16 MB tmpfs (as root on Linux; elsewhere it is skipped and reported as
such). Commands run in forks of a process that has imported everything. Works on Linux and macOS.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers

from mrg.cli import main as mrg
from mrg.run.checkpoints import CheckpointFolder

CONFIGS = Path(__file__).parent.parent / "configs"
DATA = ["--data.init_args.num_train=40", "--data.init_args.num_val=8", "--data.init_args.num_test=12",
        "--data.init_args.batch_size=4", "--data.init_args.eval_batch_size=8", "--data.init_args.image_size=56",
        "--trainer.enable_progress_bar=false"]  # fmt: skip
SFT = ["--model.init_args.tiny={hidden_size: 64, num_layers: 1, vision_depth: 1, vocab_size: 400}",
       "--model.init_args.max_pixels=3136", "--model.init_args.max_new_tokens=60",
       "--model.init_args.optimizer.decay_steps=0", "--trainer.callbacks=null"]  # fmt: skip
# Two optimizer steps per round, ten rounds per epoch, validation every four rounds, a checkpoint every round.
GRPO = ["--model.init_args.lora={rank: 8, alpha: 16, dropout: 0.1}", "--model.init_args.max_pixels=3136",
        "--model.init_args.rollout.group_size=4", "--model.init_args.num_minibatches=2",
        "--model.init_args.rollout.temperature=1.0", "--model.init_args.optimizer.decay_steps=0",
        "--model.init_args.max_new_tokens=60", "--model.init_args.sample_every=2",
        "--trainer.max_steps=28", "--trainer.val_check_interval=4", "--save_every=1"]  # fmt: skip
ROUNDS = 14


class Command:
    """A command of mrg in a fork of this process.

    Args:
        argv: Arguments of the command.
        log: File to which its output is appended.
    """

    def __init__(self, argv: list[str], log: Path) -> None:
        sys.stdout.flush()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            os.dup2(1, 2)
            mrg(argv)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def ended(self) -> bool:
        """Whether the process has ended; it must still be waited for."""
        return bool(os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))

    def wait(self) -> int:
        """Wait and return the exit code, negative if a signal ended the process."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> int:
        """End the process with `kill -9` and return its exit code."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


def run(argv: list[str], log: Path) -> None:
    """Run a command that must succeed."""
    code = Command(argv, log).wait()
    if code:
        raise SystemExit(f"mrg {' '.join(argv)} ended with {code}; see {log}:\n{log.read_text()[-3000:]}")


def arguments(command: str, folder: Path, policy: Path, *options: str) -> list[str]:
    """Arguments of a command on the GRPO run."""
    given = [f"--config={CONFIGS / 'demo.yaml'}", f"--runs={folder.parent}", f"--name={folder.name}", *DATA, *GRPO]
    return [command, *given, f"--model.init_args.policy={policy}", *options]


def kill_in(folder: Path, command: Command, rng: random.Random, seconds: float, aimed: bool) -> dict[str, Any]:
    """Wait for a random moment and kill the command; returns the state of the checkpoint folder."""
    checkpoints = folder / "checkpoints"
    kill: dict[str, Any] = {"aim": "writing" if aimed else "any moment"}
    stale = {entry.name for entry in temporary_files(checkpoints)}  # left by the previous kill
    if aimed:
        # Wait until `wanted` temporary files have appeared (checkpoints and manifests), and a moment longer.
        wanted, delay = rng.randint(1, 2 * ROUNDS), rng.uniform(0, 0.005)
        seen: set[str] = set()
        while len(seen) < wanted and not command.ended():
            seen |= {f"{entry.name} {entry.inode()}" for entry in temporary_files(checkpoints)}
        time.sleep(delay)
    else:
        moment = rng.uniform(0, seconds)
        while time.monotonic() - command.started < moment and not command.ended():
            time.sleep(0.001)
    kill["seconds"] = round(time.monotonic() - command.started, 3)
    kill["exit"] = command.kill()
    files = CheckpointFolder(checkpoints)
    torn = [entry.name for entry in temporary_files(checkpoints) if entry.name not in stale]
    kill["half_written"] = sorted(name.split(".")[1] for name in torn)
    kill["not_in_manifest"] = sorted(set(files.names()) - set(files.manifest()))
    path, damaged = files.newest()
    kill["newest"] = path.name if path else None
    kill["damaged"] = len(damaged)
    return kill


def temporary_files(folder: Path) -> list[os.DirEntry[str]]:
    """Files in a folder that are being written."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name.startswith(".")]
    except FileNotFoundError:
        return []


def tear(folder: Path, rng: random.Random) -> str | None:
    """Truncate the newest checkpoint, as a power cut may; returns its name."""
    files = CheckpointFolder(folder / "checkpoints")
    if len(files.names()) < 2:
        return None
    path = files.path / files.names()[0]
    os.truncate(path, rng.randrange(path.stat().st_size))
    return path.name


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested values into a dict; tensors become bytes, so that they compare bit for bit."""
    if isinstance(value, torch.Tensor):
        return {
            name: (
                str(value.dtype),
                tuple(value.shape),
                value.contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
            )
        }
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = list(enumerate(value))
    else:
        return {name: value}
    return {key: leaf for part, item in pairs for key, leaf in leaves(item, f"{name}/{part}").items()}


def outcome(folder: Path) -> dict[str, Any]:
    """Everything in a run folder that must be equal, as a flat dict."""
    path, damaged = CheckpointFolder(folder / "checkpoints").newest()
    assert path is not None, damaged
    assert not damaged
    found: dict[str, Any] = {"last checkpoint": path.name}
    for name, file in (("last", path), ("best", folder / "checkpoints" / "best.ckpt")):
        state = torch.load(file, map_location="cpu", weights_only=True)
        for callback in state["callbacks"].values():
            callback.pop("dirpath", None)
        found |= leaves(state, name)
    with (folder / "metrics.csv").open(newline="") as table:
        for number, row in enumerate(csv.DictReader(table)):
            for column, value in row.items():
                if not (column.startswith("seconds/") or column.endswith("per_second")):
                    found[f"metrics.csv/{number}/{column}"] = value
    found["predictions.jsonl"] = (folder / "predictions.jsonl").read_text()
    found["samples.jsonl"] = (folder / "samples.jsonl").read_text()
    for file in sorted((folder / "policy").iterdir()):
        found[f"policy/{file.name}"] = file.read_bytes()
    return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the values that differ."""
    return sorted(name for name in set(a) | set(b) if name not in a or name not in b or a[name] != b[name])


def trial(
    number: int, folder: Path, policy: Path, seconds: float, expected: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Kill and resume once or several times, resume to the end, test and compare."""
    rng = random.Random(f"{seed} {number}")
    log = folder.parent / f"{folder.name}.txt"
    kills = []
    wanted = rng.choice([1, 1, 2, 3])
    while len(kills) < wanted:
        command = Command(arguments("fit", folder, policy, "--resume=auto"), log)
        kill = kill_in(folder, command, rng, seconds, aimed=rng.random() < 0.6)
        if kill["exit"] != -signal.SIGKILL:  # it had already ended: stop, or start over
            if kills:
                break
            shutil.rmtree(folder)
            continue
        if rng.random() < 0.15:
            kill["torn_after"] = tear(folder, rng)
        kills.append(kill)
    run(arguments("fit", folder, policy, "--resume=auto"), log)
    run(arguments("test", folder, policy), log)
    text = log.read_text()
    resumed = [line.split(" from ")[0] for line in text.splitlines() if line.startswith("Resuming after round")]
    wrong = differences(expected, outcome(folder))
    return {
        "trial": number,
        "kills": kills,
        "resumed": resumed,
        "told_of_damage": text.count("is damaged"),
        "equal": not wrong,
        "differences": wrong[:20],
    }


def fill_disk(folder: Path, policy: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Fill the disk in the middle of a run, then make room and resume."""
    mount = folder.parent
    mount.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(mount)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return {"left_out": f"a tmpfs cannot be mounted here: {error}"}
    log = mount.parent / "disk_full.txt"
    try:
        command = Command(arguments("fit", folder, policy), log)
        files = CheckpointFolder(folder / "checkpoints")
        while not any(name >= "round-00000006" for name in files.names()) and not command.ended():
            time.sleep(0.002)
        filler = mount / "filler"
        size = (files.path / files.names()[-1]).stat().st_size
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:  # full: make room for logs, but not for a checkpoint
                file.truncate(max(0, file.tell() - size // 2))
        code = command.wait()
        said = [line for line in log.read_text().splitlines() if line.strip()]
        path, damaged = files.newest()
        filler.unlink()
        run(arguments("fit", folder, policy, "--resume=auto"), log)
        run(arguments("test", folder, policy), log)
        wrong = differences(expected, outcome(folder))
        return {
            "exit": code,
            "said": [line.replace(str(mount.parent), "") for line in said if line.startswith(("mrg: ", "The last"))],
            "newest": path.name if path else None,
            "damaged": damaged,
            "equal": not wrong,
            "differences": wrong[:20],
        }
    finally:
        subprocess.run(["umount", str(mount)], check=False, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Kill a GRPO run, resume it, and compare it with an uninterrupted run."
    )
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--sft_steps", type=int, default=120, help="training steps of the initial policy")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--output", type=Path, default=None, help="folder for torture.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Forks find everything imported; this process itself computes nothing.
    for name in ("mrg.commands.lightning", "peft", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"):
        importlib.import_module(name)

    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        report = torture(Path(place), options.trials, options.seed, options.sft_steps)
    kills = [kill for row in report["trials"] for kill in row["kills"]]
    equal = sum(row["equal"] for row in report["trials"])
    writing = sum(bool(kill["half_written"] or kill["not_in_manifest"]) for kill in kills)
    early = sum(kill["newest"] is None for kill in kills)
    report["verdict"] = {
        "trials": len(report["trials"]),
        "equal": equal,
        "kills": sum(kill["exit"] == -signal.SIGKILL for kill in kills),
        "kills_while_writing": writing,
        "kills_before_a_checkpoint": early,
        "torn_checkpoints": sum(bool(kill.get("torn_after")) for kill in kills),
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }
    print(f"{equal} of {len(report['trials'])} resumed runs are bit-identical to the uninterrupted run: "
          f"{report['verdict']}")  # fmt: skip
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "torture.json").write_text(json.dumps(report, indent=1))
    full = report["disk_full"]
    sys.exit(0 if equal == len(report["trials"]) and full.get("equal", True) else 1)


def torture(place: Path, trials: int, seed: int, sft_steps: int) -> dict[str, Any]:
    """Run all trials and return the report."""
    policy = place / "sft" / "policy"
    steps = [f"--trainer.max_steps={sft_steps}", f"--trainer.val_check_interval={sft_steps}"]
    sft = ["fit", f"--config={CONFIGS / 'demo_sft.yaml'}", f"--runs={place}", "--name=sft", *DATA, *SFT, *steps]
    run(sft, place / "sft.txt")
    whole = place / "whole"
    began = time.monotonic()
    run(arguments("fit", whole, policy), place / "whole.txt")
    seconds = time.monotonic() - began
    run(arguments("test", whole, policy), place / "whole.txt")
    expected = outcome(whole)
    began = time.monotonic()
    run(arguments("fit", place / "again", policy), place / "again.txt")
    seconds = min(seconds, time.monotonic() - began)
    run(arguments("test", place / "again", policy), place / "again.txt")
    repeated = differences(expected, outcome(place / "again"))
    if repeated:
        raise SystemExit(f"Two uninterrupted runs differ, so resumed runs cannot be compared: {repeated[:10]}")
    weights = sum(name.startswith("last/state_dict") for name in expected)
    print(f"A run of {ROUNDS} rounds takes {seconds:.1f} s; {len(expected)} values are compared, {weights} of them "
          "tensors of weights.", flush=True)  # fmt: skip
    report: dict[str, Any] = {
        "protocol": {
            "torch": torch.__version__, "lightning": lightning.__version__, "transformers": transformers.__version__,
            "python": platform.python_version(), "rounds": ROUNDS, "seconds_of_a_run": round(seconds, 1), "seed": seed,
            "values_compared": len(expected), "options": [*DATA, *GRPO],
        },
        "trials": [],
    }  # fmt: skip
    for number in range(trials):
        folder = place / f"trial-{number:02d}"
        row = trial(number, folder, policy, seconds, expected, seed)
        report["trials"].append(row)
        print(
            f"{number + 1:3d} {'equal' if row['equal'] else 'DIFFERENT'}  " + "; ".join(map(describe, row["kills"])),
            flush=True,
        )
        if row["equal"]:
            shutil.rmtree(folder)
    report["disk_full"] = fill_disk(place / "disk" / "run", policy, expected)
    print(f"Full disk: {report['disk_full']}", flush=True)
    return report


def describe(kill: dict[str, Any]) -> str:
    """Describe a kill."""
    found = [f"half of {name}" for name in kill["half_written"]]
    found += [f"{name} not in the manifest" for name in kill["not_in_manifest"]]
    found += [f"{kill['torn_after']} torn"] if kill.get("torn_after") else []
    where = kill["newest"] or "no checkpoint"
    return f"{kill['seconds']:.2f} s, {where}{' (' + ', '.join(found) + ')' if found else ''}"


if __name__ == "__main__":
    main()
