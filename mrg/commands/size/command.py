"""`python -m mrg size --config FILE`: does a run fit into the memory of a GPU, and what to lower where it does not."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from mrg.commands.size.activations import Numbers
from mrg.commands.size.geometry import PUBLISHED, Geometry, read_geometry
from mrg.commands.size.memory import Memory, Plan, memory
from mrg.commands.size.ways import ways_down, ways_up
from mrg.errors import UserError
from mrg.modules.policy.precision import PRECISIONS, check_precision

DEVICES = (1, 2, 4, 8, 64)
SPARE = 0.9
"""Share of a GPU's memory that may be planned for: the rest goes to CUDA, NCCL and gaps between tensors."""

TEMPLATE_TOKENS, INDICATION_TOKENS, PRIOR_TOKENS, CHARACTERS_PER_TOKEN = 30, 40, 150, 3


def main(args: Sequence[str]) -> None:
    """Print the table; exit with 1 where no column fits."""
    parser = argparse.ArgumentParser(
        prog="python -m mrg size",
        description=__doc__,
        epilog="All keys of `fit` are taken as well, such as --model.init_args.micro_batch_tokens 4096.",
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, nargs="+", help="numbers of GPUs; the configuration's by default")
    parser.add_argument("--memory", type=float, default=80.0, help="GiB of one GPU")
    parser.add_argument("--geometry", choices=list(PUBLISHED), help="a published shape in place of the policy's own")
    options, rest = parser.parse_known_args(list(args))
    if not any(word.split("=")[0] in ("-c", "--config") for word in rest):
        raise UserError("No run to size: name its configuration by --config FILE.")
    for name, values in (("devices", options.devices or [1]), ("memory", [options.memory])):
        if min(values) <= 0:
            raise UserError(f"Expected --{name} to be above 0, but got {min(values)}.")
    config = read_config(rest)
    shape = read_geometry(options.geometry or _policy(config))
    plan = plan_of(config, shape)
    counts = options.devices or _devices(config)
    columns = {count: memory(shape, for_devices(plan, count)) for count in counts}
    print(format_table(shape, plan, columns, options.memory, options.geometry or _policy(config)))
    fits = [count for count, needed in columns.items() if needed.total <= SPARE * options.memory * 2**30]
    last = max(columns)
    chosen, needed, allowed = for_devices(plan, last), columns[last], SPARE * options.memory * 2**30
    where = f" on {last} GPUs" if last > 1 else ""
    if not fits:
        print(f"\nIt does not fit: the largest phase is {needed.largest}. One change alone gives{where}:")
        print(*(f"  {line}" for line in ways_down(shape, chosen, needed, allowed)), sep="\n")
        raise SystemExit(1)
    if len(fits) < len(columns):
        print(f"\nIt fits on {', '.join(map(str, fits))} GPUs of {options.memory:g} GiB.")
    elif lines := ways_up(shape, chosen, allowed):
        print(f"\nWhat is free may be spent on one of these{where}:", *(f"  {line}" for line in lines), sep="\n")


def read_config(argv: Sequence[str]) -> Any:
    """The configuration that `fit` would run, without building anything."""
    from mrg.commands.lightning import MrgCLI, run

    class Reader(MrgCLI):
        typed, only_parses = "size", True

    return run(["fit", *argv], Reader).config["fit"]


def _policy(config: Any) -> str:
    policy = str(getattr(config.model.init_args, "policy", "tiny"))
    if policy == "tiny":
        raise UserError("A tiny policy fits everywhere: set model.init_args.policy, or pass --geometry.")
    return policy


def _devices(config: Any) -> tuple[int, ...]:
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    return (int(devices) * int(nodes),) if str(devices).isdecimal() and int(devices) * int(nodes) > 1 else DEVICES


def for_devices(plan: Plan, count: int) -> Plan:
    """The plan on so many GPUs: alone without a strategy, and DDP, which is Lightning's default, on several."""
    strategy = "one" if count == 1 else plan.strategy if plan.strategy != "one" else "ddp"
    return dataclasses.replace(plan, world_size=count, strategy=strategy)


def plan_of(config: Any, shape: Geometry) -> Plan:
    """What of a configuration counts.

    Raises:
        ValueError: If the images have no pixel budget where they need one.
    """
    given, data = config.model.init_args, config.data.init_args
    if not hasattr(given, "dtype"):
        raise UserError(f"{config.model.class_path} is not trained: size a configuration of SFT or GRPO.")
    if shape.patch_pixels and not given.max_pixels:
        raise UserError(
            "Expected model.init_args.max_pixels to be set: without it an image makes as many tokens as it likes."
        )
    precision = str(config.trainer.precision or "32-true")
    check_precision(precision)
    rank = int(given.lora.rank) if given.lora else 0
    weights = {"float32": 4, "bfloat16": 2}.get(given.dtype, shape.weights)
    grpo = hasattr(given, "rollout")
    repeats = 2 if given.use_prior else 1
    text = TEMPLATE_TOKENS + len(given.prompt) // CHARACTERS_PER_TOKEN
    text += INDICATION_TOKENS * bool(given.use_indication) + PRIOR_TOKENS * bool(given.use_prior)
    strategy = getattr(config.trainer.strategy, "class_path", config.trainer.strategy)
    return Plan(
        numbers=Numbers(weights, PRECISIONS[precision], rank, bool(given.gradient_checkpointing)),
        strategy="fsdp" if str(strategy).endswith("FSDP2") else "ddp" if "ddp" in str(strategy).lower() else "one",
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        group_size=given.rollout.group_size if grpo else 1,
        max_new_tokens=given.max_new_tokens,
        micro_batch_tokens=given.micro_batch_tokens if grpo else 0,
        text_tokens=text,
        images=given.max_views * repeats,
        image_tokens=given.max_pixels // shape.patch_pixels if shape.patch_pixels else shape.image_tokens,
        reference=grpo and bool(given.kl.coef),
        train_vision=bool(given.train_vision),
        four_bits=bool(given.load_in_4bit),
        servers=grpo and given.rollout.servers is not None,
        compile_decode=bool(given.compile_decode),
    )


def format_table(shape: Geometry, plan: Plan, columns: dict[int, Memory], size: float, name: str) -> str:
    """One column for each number of GPUs, GiB on each of them."""
    numbers = plan.numbers
    kind = f"LoRA of rank {numbers.rank}" if numbers.rank else "all weights"
    precision = (
        f"{'float32' if numbers.language == 4 else 'bfloat16'} weights{', autocast' if numbers.autocast else ''}"
    )
    strategies = {for_devices(plan, count).strategy for count in columns} - {"one"}
    head = [
        f"{name}: {shape.total:,} weights, {kind}, {precision}, {', '.join(sorted(strategies)) or 'one GPU'}, "
        f"{'with' if numbers.checkpointing else 'without'} gradient checkpointing",
        f"{plan.batch_size} studies a GPU, {plan.group_size} completions of {plan.max_new_tokens} tokens, prompts of "
        f"{plan.prompt_tokens} ({plan.images} x {plan.image_tokens} of images), passes of "
        f"{plan.pass_tokens:,} tokens at most",
        "",
        f"{'GiB on each GPU, by number of GPUs':<36}" + "".join(f"{count:>9}" for count in columns),
    ]
    first = next(iter(columns.values()))
    stays = list(dict.fromkeys(key for column in columns.values() for key in column.stays))
    rows = [(key, [column.stays.get(key, 0) for column in columns.values()]) for key in stays]
    rows += [(f"+ {key}", [column.phases[key] for column in columns.values()]) for key in first.phases]
    rows.append(("peak: what stays + the largest phase", [column.total for column in columns.values()]))
    lines = [
        f"{key:<36}" + "".join(f"{value / 2**30:>9.2f}" for value in values) for key, values in rows if any(values)
    ]
    verdict = ["yes" if column.total <= SPARE * size * 2**30 else "no" for column in columns.values()]
    lines.append(f"{f'fits in {SPARE:.0%} of {size:g} GiB':<36}" + "".join(f"{word:>9}" for word in verdict))
    return "\n".join(head + lines)
