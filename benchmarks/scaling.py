"""Predict rounds on 8 and 64 GPUs: data sent by each rank, time per round, and cost of uneven lengths.

    python benchmarks/scaling.py --metrics benchmarks/results/scaling-2026-11-25/demo-metrics.csv \\
        --output benchmarks/results/scaling-2026-11-25/scaling.json

Phase times come from the metrics.csv of a run on one device. For the published model sizes, which have not been run,
they are estimated from operations and memory traffic on an assumed GPU, and labelled as such. Lengths are sampled from
a log-normal distribution. The same seed gives the same tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from measured_run import measured, settings_of
from operations import language_operations, vision_operations
from uneven import Cost, Lengths, sigma_of, simulate

from benchmarks.communication import round_seconds, volume
from mrg.commands.size.activations import Training
from mrg.commands.size.geometry import Geometry, geometry, read_geometry
from mrg.commands.size.memory import Plan


@dataclasses.dataclass(frozen=True)
class Machine:
    """Assumed, not measured, properties of a GPU and its interconnect.

    Args:
        operations: Operations per second of a large bfloat16 matrix product.
        share: Fraction of these that a pass reaches.
        memory: Memory bandwidth in bytes per second.
        inside: Bytes per second sent to GPUs of the same machine.
        outside: Bytes per second sent to other machines.
        latency: Seconds of one step of a ring.
        gpus: GPUs per machine.
    """

    operations: float = 989e12
    share: float = 0.4
    memory: float = 3.35e12
    inside: float = 450e9
    outside: float = 50e9
    latency: float = 10e-6
    gpus: int = 8

    def bandwidth(self, world_size: int) -> float:
        return self.inside if world_size <= self.gpus else self.outside


ETHERNET = Machine(inside=1.25e9, outside=1.25e9, latency=50e-6)
"""Assumed network of the run whose phases were measured on a CPU: 10 Gb/s between ranks."""


def assumed(name: str, shape: Geometry, plan: Plan, length: float, machine: Machine) -> dict[str, float]:
    """Seconds of each phase of a published model size, from operations and memory traffic; rewards are excluded."""
    studies, prompt, tokens = plan.batch_size, plan.prompt_tokens, round(length)
    language = language_operations(name, prompt, 1, plan.group_size, tokens) * studies
    reading = language_operations(name, prompt, 1, 0, 0) * studies
    speed = machine.share * machine.operations
    passes = 3 if plan.training.checkpointing else 2  # with frozen weights backward costs as much as forward
    return {
        "vision": vision_operations(name, plan.image_tokens) * studies * plan.images / speed,
        "rollout": reading / speed,  # decoding is simulated
        "reward": 0.0,
        "reference": language / speed if plan.reference else 0.0,
        "policy": passes * language / speed,
    }


def decoding_cost(shape: Geometry, plan: Plan, length: float, machine: Machine) -> Cost:
    """Cost of reading the weights, each row's keys and one copy of each prompt's keys; kernel launches are excluded."""
    size = plan.training.language
    token = 2 * shape.num_layers * shape.kv_width * 2
    weights = (shape.decoder + shape.vocab_size * shape.width) * size
    fixed = (weights + token * plan.batch_size * plan.prompt_tokens) / machine.memory
    return Cost(fixed, token * length / 2 / machine.memory, "memory traffic of the assumed GPU")


def measure_decoding(tokens: tuple[int, int] = (4, 36)) -> Cost:
    """Measure a step on this machine, on one thread: rollouts of the demo's shape without an end, of two lengths."""
    import torch

    from mrg.modules.prefix.packing import Prompts
    from mrg.modules.rollout.sampling import sample

    torch.set_num_threads(1)
    policy, numbers, seconds = demo_policy(), (1, 2, 4, 8, 16), []
    policy.__dict__["banned_ids"] = [*policy.banned_ids, policy.eos_id]
    for prompts in numbers:
        mask = torch.ones(prompts, 30, dtype=torch.bool)
        places = torch.arange(30).expand(3, prompts, 30).contiguous()
        width = policy.base.config.text_config.hidden_size
        given = Prompts(torch.randn(prompts, 30, width), mask, places, torch.zeros_like(mask))
        taken = []
        for _ in range(5):
            ends = []
            for length in tokens:
                start = time.perf_counter()
                sample(policy, given, 8, length)
                ends.append(time.perf_counter() - start)
            taken.append((ends[1] - ends[0]) / (tokens[1] - tokens[0]))
        seconds.append(min(taken))
    rows = np.array([[1, 8 * number] for number in numbers])
    fixed, per_row = np.linalg.lstsq(rows, np.array(seconds), rcond=None)[0]
    return Cost(float(max(fixed, 0)), float(per_row), "measured: the demo's shape, one CPU thread")


def passes_of(plan: Plan, length: float) -> int:
    """Number of micro-batches in a round."""
    group = plan.prompt_tokens + plan.group_size * length
    return -(-plan.batch_size // max(1, int(plan.micro_batch_tokens // group)))


def predict(
    label: str, shape: Geometry, plan: Plan, phases: dict[str, float], decoding: float, length: float,
    machine: Machine, waits: dict[int, float], world_sizes: list[int],
) -> list[dict[str, Any]]:  # fmt: skip
    """Time of a round on one GPU and on several, with the same batch per GPU."""
    whole = {**phases, "rollout": phases["rollout"] + decoding}
    alone, result = sum(whole.values()), []
    for strategy in ("ddp", "fsdp"):
        for world in world_sizes:
            chosen = dataclasses.replace(plan, strategy=strategy if world > 1 else "one", world_size=world)
            num = passes_of(chosen, length)
            sent = volume(shape, chosen, num, num if plan.reference else 0)
            wait = 1 + (waits[world] - 1) * (decoding / whole["rollout"] if decoding else 1.0)
            least, most = round_seconds(whole, sent, world, machine.bandwidth(world), machine.latency, wait)
            result.append(
                {
                    "run": label, "strategy": strategy, "world_size": world, "passes": num,
                    "sent_bytes": sent.sent(world), "least": least, "most": most,
                    "efficiency": [alone / most, alone / least],
                }
            )  # fmt: skip
    return result


def show_simulation(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n| decoding | ranks | mean rank | slowest rank | slowest / mean | speedup over one by one |")
    print("|---|---:|---:|---:|---:|---:|")
    first = {row["world_size"]: row["slowest"] for row in rows if row["way"] == "one study after another"}
    for row in rows:
        print(
            f"| {row['way']} | {row['world_size']} | {row['seconds']:.3f} s | {row['slowest']:.3f} s | "
            f"{row['wait']:.2f} | {first[row['world_size']] / row['slowest']:.2f}x |"
        )


def show_prediction(rows: list[dict[str, Any]]) -> None:
    print("\n| run | strategy | GPUs | sent per rank | round | scaling efficiency |")
    print("|---|---|---:|---:|---:|---:|")
    for row in rows:
        if row["world_size"] == 1 and row["strategy"] != "ddp":
            continue
        name = "one" if row["world_size"] == 1 else row["strategy"]
        span = f"{row['least']:.2f} s" if row["most"] - row["least"] < 0.005 else (
            f"{row['least']:.2f} to {row['most']:.2f} s")  # fmt: skip
        low, high = row["efficiency"]
        share = f"{low:.0%}" if high - low < 0.005 else f"{low:.0%} to {high:.0%}"
        print(f"| {row['run']} | {name} | {row['world_size']} | {size_of(row['sent_bytes'])} | {span} | {share} |")


def size_of(count: float) -> str:
    for unit, power in (("GB", 9), ("MB", 6)):
        if count >= 10**power:
            return f"{count / 10**power:,.2f} {unit}"
    return f"{count / 1000:,.1f} kB"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.csv of a GRPO run on one device")
    parser.add_argument("--policy", default="", help="folder or hub id of its policy (default: the demo's shape)")
    parser.add_argument(
        "--config", type=Path, help="its configuration (default: config.yaml in the folder of --metrics)"
    )
    parser.add_argument("--prompt-tokens", type=int, default=25)
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--between", type=float, default=0.5, help="share of the variance common to a study's completions"
    )
    parser.add_argument("--long-mean", type=float, default=128.0, help="mean sampled length for the published sizes")
    parser.add_argument("--long-sigma", type=float, default=0.5)
    parser.add_argument(
        "--fixed", type=float, default=1.43e-3, help="seconds of a decoding step on the CPU, whatever its rows"
    )
    parser.add_argument("--per-row", type=float, default=4.15e-5, help="seconds added by each row")
    parser.add_argument("--measure", action="store_true", help="measure --fixed and --per-row on this machine")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    for name, file in (("metrics", given.metrics), ("config", given.config)):
        if file is not None and not file.is_file():
            parser.error(f"--{name}: {file} does not exist")
    return given


def demo_policy() -> Any:
    """A policy with the shape and vocabulary of the demo's."""
    import torch

    from mrg.datamodules.demo import World, make_study
    from mrg.modules.policy.tiny import Tiny, tiny_policy

    torch.manual_seed(0)
    reports = [make_study(World(), 0, "train", index, 112).report for index in range(1000)]
    return tiny_policy(reports, Tiny()).eval()


def main() -> None:
    options = arguments()
    phases, lengths = measured(options.metrics)
    run = settings_of(options.metrics, options.config)
    worlds = options.world_sizes
    sigma = sigma_of(lengths["length"], lengths["length_max"], run.batch_size * run.group_size)
    short = Lengths(lengths["length"], sigma, options.between, run.max_new_tokens)
    cost = measured_cost = (
        measure_decoding()
        if options.measure
        else Cost(options.fixed, options.per_row, "measured earlier with --measure: the demo's shape, one CPU thread")
    )
    print(
        f"Measured run {options.metrics}: {', '.join(f'{name} {value:.3f} s' for name, value in phases.items())}; "
        f"mean length {lengths['length']:.1f}, longest of a round {lengths['length_max']:.1f}: log-normal "
        f"with sigma {sigma:.3f}.\nA decoding step there: {1e3 * cost.fixed:.3f} ms and {1e6 * cost.per_row:.1f} us "
        f"per row ({cost.source})."
    )
    common = (run.batch_size, run.group_size, options.rounds, options.seed)
    tables = {"measured run": simulate(short, cost, worlds, *common)}
    title = f"Decoding of the measured run, {run.batch_size} studies a rank, {run.group_size} completions each"
    show_simulation(f"{title} ({run.source})", tables["measured run"])
    shape = read_geometry(options.policy) if options.policy else geometry(demo_policy().base.config)
    own = Plan(
        Training(4, False, run.rank, False), batch_size=run.batch_size, group_size=run.group_size,
        max_new_tokens=run.max_new_tokens, micro_batch_tokens=run.micro_batch_tokens, images=0,
        text_tokens=options.prompt_tokens,
    )  # fmt: skip
    waits = waits_of(tables["measured run"])
    predicted = predict("measured", shape, own, phases, 0.0, short.mean, ETHERNET, waits, worlds)
    machine = Machine()
    long = Lengths(options.long_mean, options.long_sigma, options.between, 256)
    for name in ("3b", "7b", "32b"):
        shape = read_geometry(name)
        plan = Plan(Training(), batch_size=8, micro_batch_tokens=8192, text_tokens=93, image_tokens=334)
        cost = decoding_cost(shape, plan, long.mean, machine)
        tables[name] = simulate(long, cost, worlds, plan.batch_size, plan.group_size, *common[2:])
        if name == "7b":
            show_simulation(f"Decoding of 7b: {1e3 * cost.fixed:.2f} ms a step and {1e6 * cost.per_row:.1f} us a row "
                            f"({cost.source})", tables[name])  # fmt: skip
        decoding = next(row["seconds"] for row in tables[name] if row["way"].endswith("leave"))
        guessed = assumed(name, shape, plan, long.mean, machine)
        waits = waits_of(tables[name])
        predicted += predict(name, shape, plan, guessed, decoding, long.mean, machine, waits, worlds)
    show_prediction(predicted)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        settings.pop("output")
        content = {
            "settings": settings, "run": dataclasses.asdict(run), "phases": phases,
            "lengths": {**lengths, "sigma": sigma},
            "assumed_gpu": dataclasses.asdict(machine), "assumed_ethernet": dataclasses.asdict(ETHERNET),
            "decoding_cost": dataclasses.asdict(measured_cost),
            "simulation": tables, "prediction": predicted,
        }  # fmt: skip
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def waits_of(rows: list[dict[str, Any]]) -> dict[int, float]:
    return {row["world_size"]: row["wait"] for row in rows if row["way"].endswith("leave")}


if __name__ == "__main__":
    main()
