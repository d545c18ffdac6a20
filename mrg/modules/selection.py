"""Measures how the reward of each training study varies, for `mrg.datamodules.selection`.

Completions are a function of the seed, the epoch, the policy and the batch, whose studies do not depend on the number
of processes. What is measured is appended to `selection.jsonl` in the folder of the run: a measurement that was
interrupted is resumed from there, if policy and settings are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.datamodules.selection import Measured, Selection
from mrg.files import append_lines, write_lines
from mrg.log import log
from mrg.modules.arguments import plain_arguments
from mrg.modules.policy.ranks import failing_together, full, gather, gathered
from mrg.modules.rl.advantage import dead_groups
from mrg.modules.rl.reward import Rewards, replace_rewards
from mrg.modules.rollout.sampling import sample
from mrg.modules.round import RoundModule

FILE = "selection.jsonl"
"""The latest measurement: its identity, then one row per study with the mean and deviation of its rewards."""

Row = tuple[float | None, float]
"""Mean reward, None if there is none, and standard deviation."""


def statistics(rewards: Rewards, samples: int) -> list[Row]:
    """Mean and standard deviation, with Bessel's correction, of the rewards of each study that exist.

    Args:
        rewards: Rewards of N completions; row n belongs to study n // samples.
        samples: Completions per study.
    """
    here = torch.ones_like(rewards.total, dtype=torch.bool) if rewards.scored is None else rewards.scored
    groups = zip(rewards.total.double().view(-1, samples), here.view(-1, samples), strict=True)
    dead = dead_groups(rewards.total, samples, rewards.scored).tolist()  # exactly, whatever a mean rounds to
    found: list[Row] = []
    for (values, scored), equal in zip(groups, dead, strict=True):
        own = values[scored]
        found.append((float(own.mean()) if len(own) else None, 0.0 if equal else float(own.std())))
    return found


@torch.no_grad()
def measure(module: RoundModule, select: Selection, epoch: int) -> Measured:
    """Sample completions of all training studies and measure their rewards; all ranks must call this.

    Args:
        module: Module in training.
        select: Settings.
        epoch: Index of the epoch that is about to start.
    """
    trainer, data = module.trainer, module.trainer.datamodule  # type: ignore[attr-defined]
    studies, size, world_size = data.splits["train"], data.eval_batch_size, trainer.world_size
    chosen = _chosen(len(studies), select.studies, hash((module.rollout_settings.seed, epoch)) % 2**63)
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    names = {index: studies[index].id for index in chosen}
    file = Path(trainer.default_root_dir) / FILE
    identity = _identity(module, select, epoch)
    known: dict[str, Row] = trainer.strategy.broadcast(_resume(file, identity) if trainer.is_global_zero else {})
    left = [number for number, rows in enumerate(batches) if any(names[index] not in known for index in rows)]
    log.info(
        f"Sampling {select.samples} completions of {len(chosen):,} training studies to select those that teach"
        + (f"; {len(known):,} are measured already." if known else ".")
    )
    own = left[trainer.global_rank :: world_size]
    loader = iter(data.train_batches([batches[number] for number in own]))
    if module.engine is not None:
        module.engine.synchronize(module.round_index + 1, trainer)
    was_training = module.policy.training
    module.policy.eval()
    try:
        with module.monitor.phase("selection"), gathered(module.policy):
            for step in range(-(-len(left) // world_size)):
                new: dict[str, Row] = {}
                with failing_together(world_size, module.keep_intact):
                    if step < len(own):
                        seed = hash((module.rollout_settings.seed, epoch, own[step])) % 2**63
                        batch = trainer.precision_plugin.convert_input(next(loader))
                        data.note_skipped(batch)
                        new = {names[index]: (None, 0.0) for index in batches[own[step]]}  # unless it can be read
                        if batch.counts:
                            with trainer.precision_plugin.forward_context():
                                rows = _rows(module, batch.to(module.device), select.samples, seed)
                            new |= dict(zip(batch.study_id, rows, strict=True))
                found = {name: row for part in gather(new, world_size) for name, row in part.items()}
                with failing_together(world_size, module.keep_intact):
                    if trainer.is_global_zero:
                        append_lines(file, [{"id": name, "mean": m, "std": s} for name, (m, s) in found.items()])
                known |= found
    finally:
        module.policy.train(was_training)
    mean, deviation = (torch.full((len(studies),), math.nan, dtype=torch.float64) for _ in range(2))
    for index, name in names.items():
        value, deviation[index] = known[name]
        mean[index] = math.nan if value is None else value
    return Measured(epoch, mean, deviation)


def _chosen(num_studies: int, wanted: int, seed: int) -> list[int]:
    """Indices of the studies to sample, in their order: all, or a random subset."""
    if not 0 < wanted < num_studies:
        return list(range(num_studies))
    order = torch.randperm(num_studies, generator=torch.Generator().manual_seed(seed))
    chosen: list[int] = order[:wanted].sort().values.tolist()
    return chosen


def _rows(module: RoundModule, batch: Batch, samples: int, seed: int) -> list[Row]:
    """Mean reward of the completions of each study, and the deviation of what a round would learn from."""
    options = samples, module.max_new_tokens, module.temperature
    if module.engine is not None:
        rollout = module.engine.sample(batch, {row: hash((seed, row)) for row in range(len(batch))}, *options)
    else:
        generator = torch.Generator(module.device).manual_seed(seed)
        rollout = sample(module.policy, module.policy.embed(batch), *options, generator, module.decoder)
    rows = [row for row in range(len(batch)) for _ in range(samples)]
    rewards = module.rewards_of(rollout.texts, rollout.completion_mask.sum(1).cpu(), batch, rows)
    found = statistics(rewards, samples)
    if not module.adds_references:
        return found
    # A group of equal rewards learns from its reference, if that is paid more.
    groups, _, _, own = module.references(batch, rewards, samples)
    learned = statistics(replace_rewards(rewards, own, torch.tensor(groups, dtype=torch.long) * samples), samples)
    return [(mean, deviation) for (mean, _), (_, deviation) in zip(found, learned, strict=True)]


def _identity(module: RoundModule, select: Selection, epoch: int) -> dict[str, Any]:
    """What a measurement depends on, as values of JSON; sharded weights are gathered."""
    sums: list[Tensor] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            value = full(parameter.detach()).double()
            sums += [value.sum(), value.square().sum()]
    labeler = getattr(module.labeler, "name", type(module.labeler).__name__)
    settings = {**plain_arguments(module.hparams), **dataclasses.asdict(select), "labeler": str(labeler)}
    text = json.dumps([settings, [float(value) for value in sums]], sort_keys=True)
    return {"round": module.round_index + 1, "epoch": epoch, "digest": hashlib.sha256(text.encode()).hexdigest()}


def _resume(file: Path, identity: Mapping[str, Any]) -> dict[str, Row]:
    """Studies that a measurement of this identity has finished; the file of any other one is replaced."""
    rows: list[dict[str, Any]] = []
    if file.is_file():
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]  # a last line without an end is unfinished
        with contextlib.suppress(ValueError):
            found = [json.loads(line) for line in lines]
            rows = found[1:] if found[:1] == [identity] else []
    file.parent.mkdir(parents=True, exist_ok=True)
    write_lines(file, [dict(identity), *rows])
    return {row["id"]: (row["mean"], row["std"]) for row in rows}
