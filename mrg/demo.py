"""`python -m mrg demo`: SFT, GRPO from it, test of both, one table; offline, on a CPU, on drawn images."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent.parent / "configs"
QUICK = [
    "--data.init_args.num_train=256", "--data.init_args.num_val=16", "--data.init_args.num_test=64",
    "--model.init_args.max_new_tokens=60",
]  # fmt: skip


def main(args: Sequence[str]) -> None:
    """Parse the demo's own options and run it.

    Args:
        args: `--quick` for a minute's run that shows the way but learns little, `--seed`, `--runs`.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m mrg demo", description="SFT, GRPO from it, one table; offline, on a CPU.")
    parser.add_argument("--quick", action="store_true", help="a minute: shows every stage, learns little")
    parser.add_argument("--seed", type=int, default=0, help="of the world, the weights and the rollouts")
    parser.add_argument(
        "--runs", type=str, default="runs/demo", help="folder of the demo's runs; replaced if it exists"
    )
    options = parser.parse_args(list(args))
    run_demo(Path(options.runs), options.seed, options.quick)


def run_demo(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Train and test both policies; returns the results that the table shows."""
    started = time.monotonic()
    if folder.exists():
        shutil.rmtree(folder)
    shared = [
        f"--seed_everything={seed}",
        f"--data.init_args.seed={seed}",
        f"--runs={folder}",
        *(QUICK if quick else []),
    ]
    _say(started, "SFT: a tiny vision-language model learns to write reports, token by token.")
    _fit("demo_sft.yaml", "sft", shared, 8 if quick else 0)
    _say(started, "GRPO: it writes 8 reports per study and learns from their clinical reward.")
    policy = f"--model.init_args.policy={folder / 'sft' / 'policy'}"
    _fit("demo.yaml", "grpo", [*shared, policy, f"--model.init_args.seed={seed}"], 2 if quick else 0)
    _say(started, "Test: both policies on held-out studies, beside what saying nothing would earn.")
    results = _compare(folder, quick)
    _say(started, f"Done. Results in {folder / 'results.json'}, predictions in {folder}/*/predictions.jsonl")
    return results


def _say(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)


def _fit(config: str, name: str, shared: list[str], steps: int) -> None:
    from mrg.lightning_cli import run

    limit = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"] if steps else []
    run(["fit", f"--config={CONFIGS / config}", f"--name={name}", *shared, *limit])
    folder = Path(next(a for a in shared if a.startswith("--runs=")).removeprefix("--runs=")) / name
    checkpoint = folder / "checkpoints" / "best.ckpt"
    run(["test", f"--config={folder / 'config.yaml'}", f"--ckpt_path={checkpoint}"])


def _compare(folder: Path, quick: bool) -> dict[str, Any]:
    from mrg.callbacks.results import write_json
    from mrg.metrics import RulesLabeler
    from mrg.metrics.results import evaluate_systems, format_table

    rows = {name: [json.loads(line) for line in (folder / name / "predictions.jsonl").open(encoding="utf-8")]
            for name in ("sft", "grpo")}  # fmt: skip
    baselines = json.loads((folder / "sft" / "baselines.json").read_text(encoding="utf-8"))
    systems = {name: [text] * len(rows["sft"]) for name, text in baselines.items()}
    systems |= {"SFT": [r["prediction"] for r in rows["sft"]], "GRPO from SFT": [r["prediction"] for r in rows["grpo"]]}
    formats = {
        "SFT": sum(r["format"] for r in rows["sft"]) / len(rows["sft"]),
        "GRPO from SFT": sum(r["format"] for r in rows["grpo"]) / len(rows["grpo"]),
    }
    target = [r["target"] for r in rows["sft"]]
    results = evaluate_systems(
        systems, target, RulesLabeler(), formats=formats, differences=[("GRPO from SFT", "SFT")],
        num_resamples=200 if quick else 1000,
    )  # fmt: skip
    write_json(folder / "results.json", results)
    print(format_table(results))
    return results
