"""Changes of a single setting that would lower a run's peak memory, or use the headroom, with the resulting peak."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from mrg.commands.size.geometry import Geometry
from mrg.commands.size.memory import Memory, Plan, memory

LEAST_GAIN = 0.02
"""Smallest reduction of the peak that is reported, as a share of it."""
GIB = 2**30


def savings(shape: Geometry, plan: Plan, needed: Memory, allowed: float) -> list[str]:
    """Changes that lower the peak, largest effect first, one line each; `needed` and `allowed` are bytes."""
    found = [(memory(shape, changed).total, text) for text, changed in _smaller(plan)]
    worth = sorted(change for change in found if change[0] < (1 - LEAST_GAIN) * needed.total)
    return [f"{text}: {total / GIB:.1f} GiB{', fits' if total <= allowed else ''}" for total, text in worth]


def uses_of_headroom(shape: Geometry, plan: Plan, allowed: float) -> list[str]:
    """Changes for speed or quality that still fit, one line each."""
    found = [(text, memory(shape, changed).total) for text, changed in _larger(plan)]
    return [f"{text}: {total / GIB:.1f} GiB" for text, total in found if total <= allowed]


def _smaller(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Changes that may lower the peak, each with the setting to change."""
    training, change = plan.training, dataclasses.replace
    if training.rank and not plan.quantized and plan.strategy != "fsdp":
        low = change(plan, quantized=True, training=change(training, weights=2, checkpointing=True))
        yield "--config configs/memory/qlora.yaml (the base in 4 bits)", low
    if not training.autocast:
        halves = change(training, autocast=True, weights=2)
        yield "trainer.precision bf16-mixed and model.init_args.dtype bfloat16", change(plan, training=halves)
    if not training.rank:
        adapter = change(training, rank=16)
        yield "model.init_args.lora (an adapter instead of all weights)", change(plan, training=adapter)
    if plan.reference and not training.rank:
        yield "model.init_args.kl.coef 0 (no copied reference)", change(plan, reference=False)
    if plan.world_size > 1 and plan.strategy != "fsdp" and not plan.quantized:
        yield "--config configs/strategy/fsdp.yaml (sharded decoder layers)", change(plan, strategy="fsdp")
    if not training.checkpointing:
        again = change(training, checkpointing=True)
        yield "model.init_args.gradient_checkpointing true", change(plan, training=again)
    for place, name in (("data", "batch_size"), ("data", "eval_batch_size"), ("model", "max_new_tokens")):
        if (value := getattr(plan, name)) > 1:
            yield f"{place}.init_args.{name} {value // 2}", change(plan, **{name: value // 2})
    if plan.micro_batch_tokens > plan.group_tokens:
        fewer = max(plan.group_tokens, plan.micro_batch_tokens // 2)
        yield f"model.init_args.micro_batch_tokens {fewer}", change(plan, micro_batch_tokens=fewer)
    if plan.group_size > 2:
        fewer = max(2, plan.group_size // 2)
        yield f"model.init_args.rollout.group_size {fewer}", change(plan, group_size=fewer)
    if plan.images > 1:
        yield f"model.init_args.max_views {plan.images // 2}", change(plan, images=plan.images // 2)
    yield "model.init_args.max_pixels halved", change(plan, image_tokens=plan.image_tokens // 2)


def _larger(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Changes that need more memory, each with the setting to change."""
    change, training = dataclasses.replace, plan.training
    if training.checkpointing:
        once = change(training, checkpointing=False)
        yield "model.init_args.gradient_checkpointing false (no recomputation)", change(plan, training=once)
    if plan.quantized:
        yield "model.init_args.load_in_4bit false (faster, unquantized)", change(plan, quantized=False)
    more = 2 * plan.batch_size
    yield f"data.init_args.batch_size {more} (more studies per step)", change(plan, batch_size=more)
    if plan.group_size > 1:
        more = 2 * plan.group_size
        yield f"model.init_args.rollout.group_size {more} (a better group baseline)", change(plan, group_size=more)
    if plan.micro_batch_tokens and plan.micro_batch_tokens < plan.batch_size * plan.group_tokens:
        more = 2 * plan.micro_batch_tokens
        yield f"model.init_args.micro_batch_tokens {more} (fewer, larger passes)", change(plan, micro_batch_tokens=more)
    if plan.eval_batch_size < 64:
        more = 2 * plan.eval_batch_size
        yield f"data.init_args.eval_batch_size {more} (faster validation)", change(plan, eval_batch_size=more)
