"""What a change of one setting would make of a run's memory: computed, not guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from mrg.commands.size.geometry import Geometry
from mrg.commands.size.memory import Memory, Plan, memory

LEAST_GAIN = 0.02
"""Share of the peak below which a change is not worth a line."""
GIB = 2**30


def ways_down(shape: Geometry, plan: Plan, needed: Memory, allowed: float) -> list[str]:
    """Changes that lower the peak, the greatest first, a line each.

    Args:
        shape: Of the model.
        plan: Its settings.
        needed: Their memory.
        allowed: Bytes that there are.
    """
    found = [(memory(shape, changed).total, text) for text, changed in _smaller(plan)]
    worth = sorted(way for way in found if way[0] < (1 - LEAST_GAIN) * needed.total)
    return [f"{text}: {total / GIB:.1f} GiB{', fits' if total <= allowed else ''}" for total, text in worth]


def ways_up(shape: Geometry, plan: Plan, allowed: float) -> list[str]:
    """What free memory may be spent on: changes that still fit, a line each.

    Args:
        shape: Of the model.
        plan: Its settings.
        allowed: Bytes that there are.
    """
    found = [(text, memory(shape, changed).total) for text, changed in _larger(plan)]
    return [f"{text}: {total / GIB:.1f} GiB" for text, total in found if total <= allowed]


def _smaller(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Changes that may lower the peak, each with what it is called in a configuration."""
    numbers, change = plan.numbers, dataclasses.replace
    if numbers.rank and not plan.four_bits and plan.strategy != "fsdp":
        low = change(plan, four_bits=True, numbers=change(numbers, weights=2, checkpointing=True))
        yield "--config configs/memory/qlora.yaml (the base in 4 bits)", low
    if not numbers.autocast:
        halves = change(numbers, autocast=True, weights=2)
        yield "trainer.precision bf16-mixed and model.init_args.dtype bfloat16", change(plan, numbers=halves)
    if not numbers.rank:
        yield "model.init_args.lora (an adapter instead of all weights)", change(plan, numbers=change(numbers, rank=16))
    if plan.reference and not numbers.rank:
        yield "model.init_args.kl.coef 0 (no copy as reference)", change(plan, reference=False)
    if plan.world_size > 1 and plan.strategy != "fsdp" and not plan.four_bits:
        yield "--config configs/strategy/fsdp.yaml (decoder layers shared out)", change(plan, strategy="fsdp")
    if not numbers.checkpointing:
        again = change(numbers, checkpointing=True)
        yield "model.init_args.gradient_checkpointing true", change(plan, numbers=again)
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
    yield "model.init_args.max_pixels, half of it", change(plan, image_tokens=plan.image_tokens // 2)


def _larger(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Changes that take more memory, for speed or for a better gradient."""
    change, numbers = dataclasses.replace, plan.numbers
    if numbers.checkpointing:
        once = change(numbers, checkpointing=False)
        yield "model.init_args.gradient_checkpointing false (layers are computed once)", change(plan, numbers=once)
    if plan.four_bits:
        yield "model.init_args.load_in_4bit false (faster, nothing is rounded)", change(plan, four_bits=False)
    more = 2 * plan.batch_size
    yield f"data.init_args.batch_size {more} (more studies a step)", change(plan, batch_size=more)
    if plan.group_size > 1:
        more = 2 * plan.group_size
        yield f"model.init_args.rollout.group_size {more} (a better baseline)", change(plan, group_size=more)
    if plan.micro_batch_tokens and plan.micro_batch_tokens < plan.batch_size * plan.group_tokens:
        more = 2 * plan.micro_batch_tokens
        yield f"model.init_args.micro_batch_tokens {more} (fewer, larger passes)", change(plan, micro_batch_tokens=more)
    if plan.eval_batch_size < 64:
        more = 2 * plan.eval_batch_size
        yield f"data.init_args.eval_batch_size {more} (faster validation)", change(plan, eval_batch_size=more)
