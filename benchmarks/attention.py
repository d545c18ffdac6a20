"""Compare FlexAttention over a packed row with attention over copied keys: outputs, gradients, time and memory.

    python benchmarks/attention.py --geometry 7b --device cuda --dtype bfloat16 --output attention.json

One layer's attention over random queries, keys and values, with completions of unequal lengths; with and without a
sliding window, and with the image blocks of Gemma. On a CPU only outputs are compared: FlexAttention has no backward
pass there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from grpo_step import GEOMETRIES, Clock
from torch import Tensor

from mrg.modules.prefix.attention import concatenated
from mrg.modules.prefix.flex import LARGEST_ERROR, block_mask, flex, largest_error
from mrg.modules.prefix.packing import Masks, Prompts, pack


def row(options: argparse.Namespace, images: bool) -> tuple[Any, tuple[Tensor, ...]]:
    """Layout of a packed row, and its query, key and value."""
    generator = torch.Generator().manual_seed(0)
    shape, device = (options.studies, options.prompt), torch.device(options.device)
    lengths = torch.randint(options.completion // 2, options.completion + 1, (options.studies * options.group_size,))
    mask = (torch.arange(options.completion) < lengths[:, None]).to(device)
    place = torch.arange(options.prompt)
    blocks = torch.where(place % 300 < 256, place // 300, -1).expand(shape).to(device) if images else None
    real = torch.ones(shape, dtype=torch.bool, device=device)
    embeds, positions = torch.zeros(*shape, 1, device=device), place.expand(1, *shape).to(device)
    prompts = Prompts(embeds, real, positions, ~real, blocks=blocks)
    packed = pack(prompts, torch.zeros_like(mask, dtype=torch.long), mask, lambda ids: ids[..., None].float())
    text = GEOMETRIES[options.geometry]["text"]
    heads, keys = text["num_attention_heads"], text["num_key_value_heads"]
    length, width = packed.embeds.shape[1], text["hidden_size"] // heads
    tensors = [torch.randn(1, n, length, width, generator=generator) for n in (heads, keys, keys)]
    return packed.layout, tuple(x.to(device, getattr(torch, options.dtype)) for x in tensors)


def timed(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], repeats: int, backward: bool) -> dict[str, Any]:
    """Median seconds of a pass, and peak memory above the arguments in MiB on a GPU."""
    cuda = tensors[0].device.type == "cuda"
    given = [x.detach().requires_grad_(backward) for x in tensors]
    seconds = []
    for _ in range(repeats + 1):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            base = torch.cuda.memory_allocated()
        start = Clock.now()
        with torch.enable_grad() if backward else torch.no_grad():
            output = function(*given)
        if backward:
            torch.autograd.grad(output.sum(), given)
        seconds.append(Clock.now() - start)
    peak = (torch.cuda.max_memory_allocated() - base) / 2**20 if cuda else None
    return {"seconds": statistics.median(seconds[1:]), "peak_mib": peak}


def compare(options: argparse.Namespace, window: int | None, images: bool) -> dict[str, Any]:
    """Error, time and memory of one case."""
    layout, tensors = row(options, images)
    backward, scale = options.device == "cuda", tensors[0].shape[-1] ** -0.5
    masks = Masks.of(layout, window, tensors[0])
    length = tensors[0].shape[2]
    begun = Clock.now()
    mask = block_mask(layout, window, length, tensors[0].device)
    mask_seconds = Clock.now() - begun

    def first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex(q, k, v, mask, scale, window)

    def second(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return concatenated(q, k, v, layout, masks, scale)

    error = largest_error(tensors, first, second, backward)
    found = {
        "window": window,
        "images": images,
        "tokens": length,
        "error": error,
        "equal": error <= LARGEST_ERROR[tensors[0].dtype],
        "mask_seconds": mask_seconds,
        "flex": timed(first, tensors, options.repeats, backward),
        "concatenated": timed(second, tensors, options.repeats, backward),
    }
    found["speedup"] = found["concatenated"]["seconds"] / found["flex"]["seconds"]
    what = ("equal" if found["equal"] else "DIFFERENT") + (" with gradients" if backward else ", forward alone")
    print(
        f"window {window}, images {images}: {length:,} tokens, error {error:.1e} ({what}), flex "
        f"{1000 * found['flex']['seconds']:.2f} ms, concatenated {1000 * found['concatenated']['seconds']:.2f} ms"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=list(GEOMETRIES), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--studies", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=1310)
    parser.add_argument("--completion", type=int, default=200)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    window = options.completion + options.prompt // 2
    cases = [compare(options, *case) for case in ((None, False), (window, False), (window, True))]
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name != "output"}
        options.output.write_text(json.dumps({"settings": settings, "cases": cases}, indent=1) + "\n")
    raise SystemExit(not all(case["equal"] for case in cases))


if __name__ == "__main__":
    main()
