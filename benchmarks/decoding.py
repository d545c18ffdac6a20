"""Time a decoding step with shrinking shapes, fixed shapes and compilation, on the same random model and prompts.

    python benchmarks/decoding.py --output benchmarks/results/decoding.json
    python benchmarks/decoding.py --geometry 3b --device cuda --dtype bfloat16

The three alternate in one process: each round runs one full-length rollout of each (no row ends early), timed from the
first step after the prompts to the last. Weights are random and LoRA is on; compilation is timed separately. The bound
is the time to read the weights and all keys and values once, at the speed of a large copy. It fails if steps are not
compiled, or differ from the eager ones.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grpo_step import GEOMETRIES, Clock, machine, random_model

from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.prefix.packing import Prompts
from mrg.modules.rollout.compiled import CompiledDecoder
from mrg.modules.rollout.sampling import sample
from mrg.modules.rollout.static_cache import StaticDecoder

SIDES = ("shrinking", "fixed", "compiled")


def random_prompts(policy: Any, options: argparse.Namespace) -> Prompts:
    """Prompts without images: a decoding step only uses their keys and values."""
    shape = (options.studies, options.prompt)
    generator = torch.Generator().manual_seed(0)
    width = policy.base.config.text_config.hidden_size
    weight = policy.base.lm_head.weight
    embeds = torch.randn(*shape, width, generator=generator).to(weight) / 50
    positions = torch.arange(options.prompt, device=weight.device).expand(3, *shape).contiguous()
    mask = torch.ones(shape, dtype=torch.bool, device=weight.device)
    return Prompts(embeds, mask, positions, torch.zeros_like(mask))


def rollout(policy: Any, prompts: Prompts, options: argparse.Namespace, decoder: StaticDecoder | None) -> Any:
    device = prompts.mask.device
    generator = torch.Generator(device).manual_seed(0)
    return sample(policy, prompts, options.group_size, options.completion, 1.0, generator, decoder)


def seconds_of(function: Any) -> float:
    start = Clock.now()
    function()
    return Clock.now() - start


def copy_speed(device: torch.device) -> float:
    """Highest rate of a large copy in bytes per second, reads and writes counted."""
    source, target = torch.ones(2, 2**28 if device.type == "cuda" else 2**26, device=device, dtype=torch.uint8)
    return 2 * source.numel() / min(seconds_of(lambda: target.copy_(source)) for _ in range(10))


def step_bytes(policy: Any, options: argparse.Namespace) -> int:
    """Bytes read by a step in the middle of a rollout: weights once, keys and values once."""
    text = policy.base.model.language_model
    weights = sum(p.numel() * p.element_size() for n, p in text.named_parameters() if "embed_tokens" not in n)
    weights += policy.base.lm_head.weight.numel() * policy.base.lm_head.weight.element_size()
    config = policy.base.config.text_config
    width = config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * policy.base.dtype.itemsize
    tokens = options.studies * (options.prompt + options.group_size * options.completion / 2)
    return int(weights + per_token * tokens)


def measure(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    policy = load_policy(folder, LoRA(16, 32), dtype=options.dtype).to(options.device)
    policy.__dict__["banned_ids"] = [*policy.banned_ids, policy.eos_id]
    prompts = random_prompts(policy, options)
    decoders = {"shrinking": None, "fixed": StaticDecoder(), "compiled": CompiledDecoder()}
    first, rollouts, seconds = {}, {}, {side: [] for side in SIDES}
    for side in SIDES:
        first[side] = seconds_of(
            lambda side=side: rollouts.update({side: rollout(policy, prompts, options, decoders[side])})
        )
        print(f"{side}: {first[side]:.2f} s for the first rollout", flush=True)  # seen if time runs out
    refused = decoders["compiled"].refused
    one = argparse.Namespace(**{**vars(options), "completion": 1})
    for _ in range(options.repeats):
        for side in SIDES:
            reading = seconds_of(lambda: rollout(policy, prompts, one, None))
            whole = seconds_of(lambda side=side: rollout(policy, prompts, options, decoders[side]))
            seconds[side].append((whole - reading) / (options.completion - 1))
    equal = {
        side: float((rollouts[side].completion_ids == rollouts["shrinking"].completion_ids).float().mean())
        for side in SIDES
    }
    speed = copy_speed(prompts.mask.device)
    return {
        "seconds_per_step": seconds,
        "first_rollout_s": first,
        "equal_tokens": equal,
        "refused": refused,
        "bound_s": step_bytes(policy, options) / speed,
        "bytes_per_s": speed,
    }


def report(options: argparse.Namespace, result: dict[str, Any]) -> None:
    print(
        f"geometry {options.geometry}, {options.dtype}, {options.device}, P {options.prompt}, C {options.completion}, "
        f"G {options.group_size}, studies {options.studies}, {options.threads} threads, {options.repeats} rounds"
    )
    print(f"bandwidth bound: {1000 * result['bound_s']:.3f} ms a step")
    base = np.array(result["seconds_per_step"]["shrinking"])
    for side in SIDES:
        own = np.array(result["seconds_per_step"][side])
        ratios = base / own
        print(
            f"{side:<10}{1000 * np.median(own):9.3f} ms a step ({1000 * own.min():.3f} to {1000 * own.max():.3f}), "
            f"{np.median(ratios):.2f} times as fast as shrinking ({ratios.min():.2f} to {ratios.max():.2f}), "
            f"{np.median(own) / result['bound_s']:.1f} times the bound; first rollout "
            f"{result['first_rollout_s'][side]:.1f} s; {100 * result['equal_tokens'][side]:.1f} % equal tokens"
        )
    print(result["refused"] or "every checked step matched the eager step")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=list(GEOMETRIES), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompt", type=int, default=1300)
    parser.add_argument("--completion", type=int, default=100)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--studies", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder in which the random model is kept for another run")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with random_model(options, 112 * 112) as folder:
        result = measure(options, folder)
    report(options, result)
    if options.output:
        settings = {k: v for k, v in vars(options).items() if k not in ("output", "keep")}
        options.output.write_text(json.dumps({**machine(options), "settings": settings, **result}, indent=1) + "\n")
    raise SystemExit(bool(result["refused"]))


if __name__ == "__main__":
    main()
