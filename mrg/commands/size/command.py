"""`python -m mrg size --config FILE`: whether a run fits into GPU memory, and which settings to change if not."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mrg.commands.arguments import OneLineParser
from mrg.commands.size.activations import Training
from mrg.commands.size.geometry import PUBLISHED, Geometry, read_geometry
from mrg.commands.size.memory import Memory, Plan, memory
from mrg.commands.size.schedule import format_schedules, schedule
from mrg.errors import UserError
from mrg.modules.policy.precision import PRECISIONS, check_precision

DEVICES = (1, 2, 4, 8, 64)
USABLE = 0.9
"""Usable share of a GPU's memory: the rest is for CUDA, NCCL and fragmentation."""

LEAST_GAIN = 0.02
"""Smallest reduction of the peak that is reported, as a share of it."""
GIB = 2**30

TEMPLATE_TOKENS, INDICATION_TOKENS, PRIOR_TOKENS, CHARACTERS_PER_TOKEN = 30, 40, 150, 3


def main(args: Sequence[str]) -> None:
    """Print the table; exit with 1 if no column fits."""
    parser = OneLineParser(
        "size",
        __doc__,
        epilog="All options of `fit` are accepted, for example --model.init_args.micro_batch_tokens 4096.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--devices",
        type=int,
        nargs="+",
        help="numbers of GPUs (default: the configuration's if above 1, otherwise 1 2 4 8 64)",
    )
    parser.add_argument("--memory", type=float, default=80.0, help="memory of one GPU in GiB (default: 80)")
    parser.add_argument(
        "--studies", type=int, nargs="+", metavar="N", help="training and validation studies: also print the rounds"
    )
    parser.add_argument(
        "--tokens_per_second",
        type=float,
        default=0.0,
        help="speed of one GPU, to estimate the hours of --studies: train/tokens_per_second of a few rounds, divided "
        "by the number of GPUs",
    )
    parser.add_argument("--geometry", choices=list(PUBLISHED), help="published shape, in place of the policy's")
    options, rest = parser.parse_known_args(list(args))
    if not any(word.split("=")[0] in ("-c", "--config") for word in rest):
        raise UserError("`size` requires a configuration: pass --config FILE.")
    _check_options(options)
    config = read_config(rest)
    shape = read_geometry(options.geometry or _policy(config))
    plan = plan_of(config, shape, round(options.memory * GIB))
    counts = options.devices or _devices(config)
    columns = {count: memory(shape, for_devices(plan, count)) for count in counts}
    print(format_table(shape, plan, columns, options.memory, options.geometry or _policy(config)))
    if options.studies:
        num_train, num_val = [*options.studies, 0][:2]
        schedules = {n: schedule(config.trainer, for_devices(plan, n), num_train, num_val) for n in counts}
        print(f"\n{format_schedules(schedules, plan, options.tokens_per_second)}")
    last = max(columns)
    chosen, needed, allowed = for_devices(plan, last), columns[last], USABLE * options.memory * GIB
    fits = [count for count, column in columns.items() if column.fits(allowed)]
    where = f" on {last} GPUs" if last > 1 else ""
    if needed.engine_needs > sum(needed.engine.values()):
        print(
            f"\nThe vLLM engine does not start: it needs more than {needed.engine_needs / GIB:.1f} GiB for its weights "
            f"and the KV cache of {plan.engine_length} tokens. Raise model.init_args.rollout.colocate.memory "
            f"({plan.colocate:g} of {options.memory:g} GiB), or use rollout.servers."
        )
        raise SystemExit(1)
    if not fits:
        print(f"\nIt does not fit: the largest phase is {needed.largest}. Peak after a single change{where}:")
        print(*(f"  {line}" for line in savings(shape, chosen, needed, allowed)), sep="\n")
        raise SystemExit(1)
    if len(fits) < len(columns):
        print(f"\nIt fits on {', '.join(map(str, fits))} GPUs of {options.memory:g} GiB.")
    elif lines := uses_of_headroom(shape, chosen, allowed):
        print(f"\nThe headroom is enough for one of these changes{where}:", *(f"  {line}" for line in lines), sep="\n")


def _check_options(options: argparse.Namespace) -> None:
    studies = options.studies or [1]
    for name, values in (
        ("devices", options.devices or [1]), ("memory", [options.memory]), ("studies", studies),
        ("tokens_per_second", [options.tokens_per_second or 1]),
    ):  # fmt: skip
        if min(values) <= 0:
            raise UserError(f"Expected --{name} to be above 0, but got {min(values)}.")
    if len(studies) > 2:
        raise UserError(f"Expected --studies to be followed by 1 or 2 numbers, but got {len(studies)}.")
    if options.tokens_per_second and not options.studies:
        raise UserError("--tokens_per_second requires --studies, the numbers of training and validation studies.")


def read_config(argv: Sequence[str]) -> Any:
    """The configuration that `fit` would run, without instantiating anything."""
    from mrg.commands.lightning import MrgCLI, run

    class Reader(MrgCLI):
        typed, only_parses = "size", True

    return run(["fit", *argv], Reader).config["fit"]


def _policy(config: Any) -> str:
    policy = str(getattr(config.model.init_args, "policy", "tiny"))
    if policy == "tiny":
        raise UserError("A tiny policy fits any GPU: set model.init_args.policy, or pass --geometry.")
    return policy


def _devices(config: Any) -> tuple[int, ...]:
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    return (int(devices) * int(nodes),) if str(devices).isdecimal() and int(devices) * int(nodes) > 1 else DEVICES


def for_devices(plan: Plan, count: int) -> Plan:
    """The plan on a number of GPUs: DDP, Lightning's default, if there are several and no strategy is set."""
    strategy = "one" if count == 1 else plan.strategy if plan.strategy != "one" else "ddp"
    return dataclasses.replace(plan, world_size=count, strategy=strategy)


def plan_of(config: Any, shape: Geometry, gpu_memory: int) -> Plan:
    """The settings of a configuration that its memory depends on.

    Args:
        config: Configuration of `fit`.
        shape: Geometry of its policy.
        gpu_memory: Memory of one GPU in bytes.

    Raises:
        ValueError: If the configuration is neither of SFT nor of GRPO, or has no pixel budget for images of any size.
    """
    given, data = config.model.init_args, config.data.init_args
    if not hasattr(given, "dtype"):
        raise UserError(f"{config.model.class_path} is not trained: pass a configuration of SFT or GRPO.")
    if shape.patch_pixels and not given.max_pixels:
        raise UserError(
            "Expected model.init_args.max_pixels to be above 0: without it the number of image tokens has no limit."
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
        training=Training(weights, PRECISIONS[precision], rank, bool(given.gradient_checkpointing)),
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
        quantized=bool(given.load_in_4bit),
        servers=grpo and bool(given.rollout.servers or given.rollout.colocate),
        compile_decode=bool(given.compile_decode),
        colocate=given.rollout.colocate.memory if grpo and given.rollout.colocate else 0.0,
        engine_length=given.rollout.colocate.max_length if grpo and given.rollout.colocate else 0,
        gpu_memory=gpu_memory,
    )


def format_table(shape: Geometry, plan: Plan, columns: dict[int, Memory], size: float, name: str) -> str:
    """Table with one column per number of GPUs, in GiB per GPU."""
    training = plan.training
    kind = f"LoRA of rank {training.rank}" if training.rank else "all weights"
    precision = (
        f"{'float32' if training.language == 4 else 'bfloat16'} weights{', autocast' if training.autocast else ''}"
    )
    strategies = {for_devices(plan, count).strategy for count in columns} - {"one"}
    head = [
        f"{name}: {shape.total:,} weights, {kind}, {precision}, {', '.join(sorted(strategies)) or 'one GPU'}, "
        f"{'with' if training.checkpointing else 'without'} gradient checkpointing",
        f"{plan.batch_size} studies per GPU, {plan.group_size} completions of {plan.max_new_tokens} tokens, prompts of "
        f"{plan.prompt_tokens} ({plan.images} x {plan.image_tokens} of images), passes of at most "
        f"{plan.pass_tokens:,} tokens",
        "",
        f"{'GiB per GPU, by number of GPUs':<36}" + "".join(f"{count:>9}" for count in columns),
    ]
    first = next(iter(columns.values()))
    resident = list(dict.fromkeys(key for column in columns.values() for key in column.resident))
    rows = [(key, [column.resident.get(key, 0) for column in columns.values()]) for key in resident]
    for key in first.phases:
        rows.append((f"+ {key}", [column.phases[key] for column in columns.values()]))
        parts = first.engine if key == "rollout" else {}
        rows += [(f"    {part}", [column.engine[part] for column in columns.values()]) for part in parts]
    rows.append(("peak: resident + largest phase", [column.total for column in columns.values()]))
    lines = [
        f"{key:<36}" + "".join(f"{value / 2**30:>9.2f}" for value in values) for key, values in rows if any(values)
    ]
    verdict = ["yes" if column.fits(USABLE * size * GIB) else "no" for column in columns.values()]
    lines.append(f"{f'fits in {USABLE:.0%} of {size:g} GiB':<36}" + "".join(f"{word:>9}" for word in verdict))
    return "\n".join(head + lines)


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
    if plan.colocate:
        half = change(plan, colocate=plan.colocate / 2)
        yield f"model.init_args.rollout.colocate.memory {plan.colocate / 2:g}", half


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
