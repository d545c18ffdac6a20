"""Every parser with 100,000 generated inputs: a value or an error of one line, and the properties of tests/fuzzing.

    python benchmarks/fuzz.py --output benchmarks/results/fuzz-DATE [--examples 100000] [--seconds 600]

Inputs are generated in blocks, each with its number as the seed, so that a failure is found again by the same command.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import hypothesis
import PIL
import torch
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fuzzing import Target, targets

BLOCK = 500


def run(target: Target, examples: int, until: float) -> dict[str, Any]:
    """Check inputs until there are enough, one fails, or the time is over."""
    count, start, failure = 0, time.process_time(), ""

    def check(value: Any) -> None:
        nonlocal count
        count += 1
        target.check(value)

    options = settings(max_examples=BLOCK, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    block = 0
    while not block or (count < examples and not failure and time.monotonic() < until):
        try:
            hypothesis.seed(block)(options(given(target.inputs)(check)))()
        except Exception:  # any error is a finding: it ends the target and is reported
            failure = traceback.format_exc()
        block += 1
    return {"inputs": count, "cpu_seconds": round(time.process_time() - start, 1), "failure": failure}


def main() -> int:
    """Run all targets, print a table, and write fuzz.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000, help="inputs of each parser")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit of the whole run")
    parser.add_argument("--only", nargs="+", help="names of parsers; all by default")
    parser.add_argument("--output", type=Path, help="folder for fuzz.json")
    options = parser.parse_args()
    every = [target for target in targets() if not options.only or target.name in options.only]
    start, results = time.monotonic(), {}
    for place, target in enumerate(every):
        share = (options.seconds - (time.monotonic() - start)) / (len(every) - place)
        results[target.name] = found = run(target, options.examples, time.monotonic() + share)
        state = "FAILED" if found["failure"] else "ok"
        if found["failure"]:
            print(found["failure"])
        print(f"{target.name:40} {found['inputs']:8,} inputs {found['cpu_seconds']:8.1f} s  {state}", flush=True)
    versions = {"python": platform.python_version(), "hypothesis": hypothesis.__version__, "torch": torch.__version__}
    report = {"versions": {**versions, "pillow": PIL.__version__}, "targets": results}
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "fuzz.json").write_text(json.dumps(report, indent=1) + "\n")
    failed = [name for name, found in results.items() if found["failure"]]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
