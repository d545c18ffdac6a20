"""Everything that only a GPU can show, in at most nine minutes: run by benchmarks/gpu.sh.

Each part is a separate process with its own time limit, so that a part that fails or hangs costs the others nothing.
After every part gpu.json and the table are written again: whatever ends the run, the parts before are kept.
`--rehearse` runs all parts on a CPU in small, to test the script itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


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
    tests = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/modules/test_cuda.py"]
    second = [*tests[:-1], "tests/modules/test_second_device.py", "-k", "qwen2_5_vl"]

    def step(name: str, seconds: int, *options: str) -> Part:
        command = ["benchmarks/grpo_step.py", f"--device={device}", *options, f"--output={folder / name}.json"]
        return Part(name, seconds, command, f"{name}.json")

    def decode(name: str, seconds: int, *options: str) -> Part:
        command = ["benchmarks/decoding.py", f"--device={device}", *options, f"--output={folder / name}.json"]
        return Part(name, seconds, command, f"{name}.json")

    def attention(name: str, seconds: int, *options: str) -> Part:
        command = ["benchmarks/attention.py", f"--device={device}", *options, f"--output={folder / name}.json"]
        return Part(name, seconds, command, f"{name}.json")

    little = ["--height=224", "--width=224", "--completion=8", "--group-size=2", "--steps=1"]
    half = ["--dtype=bfloat16"]

    def large(size: str) -> list[str]:
        return little if small else [f"--geometry={size}", *half]

    return [
        Part("cuda_tests", 150, [*tests, "--rehearse", "-k", "qwen2_5_vl"] if small else tests),
        Part("second_device", 60, second),
        step("step_tiny_trl", 90, *(little if small else [])),
        step("step_3b", 75, *large("3b")),
        decode("decode_3b", 75, *(["--prompt=64", "--completion=8", "--repeats=1"] if small else large("3b"))),
        step("step_7b", 90, *large("7b"), *([] if small else ["--checkpointing", "--height=504", "--width=504"])),
        attention("attention", 45, *(["--prompt=64", "--completion=8", "--repeats=1"] if small else large("7b"))),
        *(
            []
            if small
            else [
                step(
                    "step_7b_4bit",
                    75,
                    *large("7b"),
                    "--checkpointing",
                    "--load-in-4bit",
                    "--steps=2",
                    "--height=504",
                    "--width=504",
                )
            ]
        ),
        Part("size_7b", 30, ["-m", "mrg", "size", "--config", "iu", "--geometry", "7b"]),
        Part("demo_quick", 90, ["-m", "mrg", "demo", "--quick", "--runs", str(folder / "demo")]),
    ]


def run(part: Part, folder: Path, left: float) -> dict[str, Any]:
    """Run a part; the last lines of its log are its summary.

    Args:
        part: The part.
        folder: Folder of the results.
        left: Seconds that are left for all parts.
    """
    limit, began, log = min(part.seconds, left), time.monotonic(), folder / f"{part.name}.log"
    if limit < 5:
        return {"state": "no time left", "seconds": 0.0, "limit": part.seconds, "summary": []}
    with log.open("w", encoding="utf-8") as stream:
        try:
            command = [sys.executable, *part.command]
            code = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=limit).returncode
            state = "passed" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            state = "out of time"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    result = {
        "state": state,
        "seconds": round(time.monotonic() - began, 1),
        "limit": part.seconds,
        "summary": [line[:200] for line in lines[-6:]],
    }
    file = folder / part.output
    if part.output and file.is_file():
        result["result"] = json.loads(file.read_text(encoding="utf-8"))
    return result


def machine() -> dict[str, Any]:
    """Versions and the device."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    else:
        found["device"] = "CPU"
    return found


def table(results: dict[str, Any]) -> str:
    """The results as text: one line for each part, with the last lines of those that failed."""
    lines = [f"{'part':<16} {'state':<16} {'seconds':>8} {'limit':>6}"]
    for name, row in results.items():
        lines.append(f"{name:<16} {row['state']:<16} {row['seconds']:>8.1f} {row['limit']:>6}")
        lines += [f"    {line}" for line in (row["summary"] if row["state"] != "passed" else row["summary"][-3:])]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the results")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, in small")
    parser.add_argument("--seconds", type=float, default=540, help="time for all parts")
    options = parser.parse_args()
    folder = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ends, results, about = time.monotonic() + options.seconds, {}, machine()
    for part in parts(folder, options.rehearse):
        print(f"[{part.name}] at most {part.seconds} s", flush=True)
        results[part.name] = run(part, folder, ends - time.monotonic())
        (folder / "gpu.json").write_text(json.dumps({"machine": about, "parts": results}, indent=1) + "\n")
        (folder / "gpu.txt").write_text(f"{about}\n{table(results)}\n")
    print(table(results))
    raise SystemExit(any(row["state"] != "passed" for row in results.values()))


if __name__ == "__main__":
    main()
