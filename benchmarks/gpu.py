"""Everything that only a GPU can show, in at most nine minutes: run by benchmarks/gpu.sh.

Each part is a separate process with its own time limit, so that a part that fails or hangs costs the others nothing.
Three files are written again before and after every part, whatever ends the run: gpu.json, the table gpu.txt, and
logs.txt with all that the parts print. `--rehearse` runs all parts on a CPU in small, to test the script itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "triton", "transformers", "peft", "lightning", "torchmetrics", "bitsandbytes", "trl")
DEVICE = """
import json, torch
found = {"device": "CPU"}
if torch.cuda.is_available():
    properties = torch.cuda.get_device_properties(0)
    found = {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
print(json.dumps(found))
"""
SIZES = """
from mrg.cli import main
for more in ([], ["--config", "configs/memory/qlora.yaml"]):
    try:
        main(["size", "--config", "configs/iu.yaml", *more, "--geometry", "7b", "--devices", "1"])
    except SystemExit as stop:
        print(stop.code)
"""
"""Predicted memory of 7B with LoRA and with QLoRA."""
MEMORY = 40 * 2**30
"""Bytes that the random models take as files, at most."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
"""Variables of every part: nothing waits for a network, and what was printed is in the log however a part ends."""
GRACE = 3
"""Seconds in which a part that is out of time may say where it was."""
FEW_TESTS = (
    "test_log_probabilities_and_gradients[qwen2_5_vl-torch.float32]",
    "test_log_probabilities_and_gradients[gemma3-torch.bfloat16]",
    "test_flex[gemma3-torch.float32]",
    "test_greedy_tokens[shrinking]",
    "test_sampled_tokens[torch.bfloat16-fixed]",
    "test_rounds[bf16-mixed]",
    "test_a_4_bit_base[torch.bfloat16]",
)
"""Tests of a rehearsal, one of each kind."""


class Part(NamedTuple):
    """One process.

    Args:
        name: Name in the table, and of its log.
        seconds: Time limit.
        command: Arguments of Python.
        output: JSON that the part writes, in the output folder.
    """

    name: str
    seconds: int
    command: list[str]
    output: str = ""


def parts(folder: Path, small: bool) -> list[Part]:
    """The parts, the most important first.

    Args:
        folder: Folder of the results.
        small: Rehearsal on a CPU.
    """
    device = "cpu" if small else "cuda"
    pytest = ["-m", "pytest", "-v", "--tb=short", "-o", "addopts=", "-m", "not slow", "-p", "no:cacheprovider"]

    def measured(script: str, name: str, seconds: int, *options: str) -> Part:
        command = [f"benchmarks/{script}.py", f"--device={device}", *options, f"--output={folder / name}.json"]
        return Part(name, seconds, command, f"{name}.json")

    little = ["--height=112", "--width=112", "--completion=8", "--group-size=2", "--steps=1"]
    few = ["--prompt=64", "--completion=8", "--repeats=1"]

    def large(size: str, *options: str, keep: bool = True) -> list[str]:
        shape = ["--geometry=smallest"] if small else [f"--geometry={size}", "--dtype=bfloat16"]
        kept = [f"--keep={folder / ('smallest' if small else size)}"] if keep else []  # parts take the same model
        return [*shape, *kept, *options]

    # The shape of configs/iu.yaml, with one image for its two of half the size.
    iu = ["--studies=8", "--group-size=8", "--completion=256", "--micro-batch-tokens=8192", "--checkpointing",
          "--height=728", "--width=728", "--steps=1"]  # fmt: skip
    chosen = [
        Part("cuda_tests", 160, [*pytest, *tests(small)]),
        measured("grpo_step", "step_tiny_trl", 75, *(little if small else [])),
        measured("grpo_step", "step_3b", 70, *large("3b", *(little if small else ["--steps=2"]))),
        measured("decoding", "decode_3b", 120, *large("3b", *(few if small else ["--completion=64", "--repeats=2"]))),
        measured("grpo_step", "step_7b", 110, *large("7b", *([*little, "--checkpointing"] if small else iu))),
        measured("attention", "attention", 75, *large("7b", *(few if small else []), keep=False)),
    ]
    if not small:
        chosen.append(measured("grpo_step", "step_7b_4bit", 100, *large("7b", *iu, "--load-in-4bit")))
    return [
        *chosen,
        Part("size_7b", 40, ["-c", SIZES]),
        Part("demo_quick", 90, ["-m", "mrg", "demo", "--quick", "--runs", str(folder / "demo")]),
    ]


def tests(small: bool) -> list[str]:
    """The tests for CUDA, and a round on the second device with this machine's packages; in a rehearsal a few of each.

    Args:
        small: Rehearsal on a CPU.
    """
    cuda, second = (f"tests/modules/test_{name}.py" for name in ("cuda", "second_device"))
    if not small:
        return [cuda, f"{second}::test_grpo_trains_there_as_on_the_cpu[qwen2_5_vl]"]
    return ["--rehearse", *(f"{cuda}::{name}" for name in FEW_TESTS), f"{second}::test_fixed_shapes_decode_there[0.0]"]


def run(part: Part, folder: Path, left: float) -> dict[str, Any]:
    """Run a part; the last lines of its log are its summary.

    Args:
        part: The part.
        folder: Folder of the results.
        left: Seconds that are left for all parts.
    """
    limit, began, log = min(part.seconds, left), time.monotonic(), folder / f"{part.name}.log"
    if limit < GRACE + 2:
        return {**waiting(part), "state": "no time left"}
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, *part.command], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **OFFLINE, "TMPDIR": str(folder)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )  # fmt: skip
        try:
            code = process.wait(limit - GRACE)
            state = "passed" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            state = "out of time"
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGINT)  # pytest then lists the failures, others print where they were
                process.wait(GRACE)
        finally:  # with the processes that it started, which would hold the GPU
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    result = {
        "state": state,
        "seconds": round(time.monotonic() - began, 1),
        "limit": part.seconds,
        "summary": [line[:200] for line in lines[-6 if state == "passed" else -15 :]],
    }
    file = folder / part.output
    if part.output and file.is_file():
        try:
            result["result"] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # the part ended while it wrote
            result["result"] = str(error)
    if part.name == "size_7b":
        result["result"] = predicted(log.read_text(encoding="utf-8", errors="replace"))
    return result


def waiting(part: Part) -> dict[str, Any]:
    """What is known of a part before it ends."""
    return {"state": "running", "seconds": 0.0, "limit": part.seconds, "summary": []}


def predicted(text: str) -> dict[str, float]:
    """Peak memory in GiB that `mrg size` predicts, by the part that measures it."""
    peaks = re.findall(r"^peak: .*?([\d.]+)$", text, re.MULTILINE)
    return dict(zip(("step_7b", "step_7b_4bit"), map(float, peaks), strict=False))


def compared(results: dict[str, Any]) -> list[str]:
    """One line for each part whose memory was predicted and measured."""
    found = results.get("size_7b", {}).get("result", {})
    rows = {name: results[name].get("result") for name in found if name in results}
    rows = {name: row for name, row in rows.items() if isinstance(row, dict) and row["settings"]["geometry"] == "7b"}
    peaks = {name: row["results"]["mrg"]["peak_mb"] / 1024 for name, row in rows.items()}
    return [f"{name}: a peak of {peak:.1f} GiB, predicted {found[name]:.1f}" for name, peak in peaks.items()]


def machine() -> dict[str, Any]:
    """Versions and the device, which a process of its own asks for: this one must not hold GPU memory."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    try:
        told = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True, timeout=60)
        return found | json.loads(told.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return found | {"device": f"{type(error).__name__}: {error}"}


def in_memory(folder: Path = Path("/dev/shm")) -> Path | None:
    """Folder in memory for models and compiled code, if it has room for them and code may be loaded from it."""
    if not folder.is_dir() or shutil.disk_usage(folder).free < MEMORY or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return None
    return folder


def table(results: dict[str, Any]) -> str:
    """The results as text: one line for each part, with the last lines of those that failed."""
    lines = [f"{'part':<16} {'state':<16} {'seconds':>8} {'limit':>6}"]
    for name, row in results.items():
        lines.append(f"{name:<16} {row['state']:<16} {row['seconds']:>8.1f} {row['limit']:>6}")
        lines += [f"    {line}" for line in (row["summary"] if row["state"] != "passed" else row["summary"][-3:])]
    return "\n".join([*lines, *compared(results)])


def write(folder: Path, logs: Path, about: dict[str, Any], results: dict[str, Any]) -> None:
    """Write the three files.

    Args:
        folder: Folder of the results.
        logs: Folder of the parts' logs.
        about: The machine.
        results: Result of each part.
    """
    (folder / "gpu.json").write_text(json.dumps({"machine": about, "parts": results}, indent=1) + "\n")
    (folder / "gpu.txt").write_text(f"{about}\n{table(results)}\n")
    texts = {name: logs / f"{name}.log" for name in results}
    parts = [
        f"==== {name}\n{file.read_text(encoding='utf-8', errors='replace')[-200_000:]}\n"
        for name, file in texts.items()
        if file.is_file()
    ]
    (folder / "logs.txt").write_text("".join(parts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the results")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, in small")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts, by their names")
    parser.add_argument("--seconds", type=float, default=540, help="time for all parts")
    parser.add_argument("--patience", type=float, default=1, help="factor of all times, for a slow machine")
    options = parser.parse_args()
    names = [part.name for part in parts(Path(), options.rehearse)]
    if unknown := sorted({*(options.only or ())} - {*names}):
        parser.error(f"Expected --only to be some of {', '.join(names)}, but got {', '.join(unknown)}.")
    folder = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ends, results = time.monotonic() + options.patience * options.seconds, {}
    about = machine()
    place = None if options.rehearse else in_memory()
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as temporary:
        logs = Path(temporary)
        try:
            for part in parts(logs, options.rehearse):
                if options.only and part.name not in options.only:
                    continue
                part = part._replace(seconds=round(options.patience * part.seconds))
                print(f"[{part.name}] at most {part.seconds} s", flush=True)
                results[part.name] = waiting(part)
                write(folder, logs, about, results)
                results[part.name] = run(part, logs, ends - time.monotonic())
        finally:  # with the log of a part in which this run was ended
            write(folder, logs, about, results)
    print(table(results))
    raise SystemExit(any(row["state"] != "passed" for row in results.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended, too
    main()
