"""How many rounds a run has, and an estimate of how long they take, by number of GPUs.

Choices: the number of rounds is exact. The time is tokens over a speed that the user gives, with completions of full
length, so that it is as good as this speed; `train/tokens_per_second` of a few rounds is the best one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mrg.commands.size.memory import Plan


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Rounds and tokens of a run.

    Args:
        rounds: Training batches on each GPU; one optimizer step each, unless `num_minibatches` or `num_iterations` is
            above 1.
        validations: Number of validations.
        train_tokens: Tokens of a round on one GPU: each prompt once, and its completions.
        val_tokens: Tokens of a validation on one GPU.
    """

    rounds: int
    validations: int
    train_tokens: int
    val_tokens: int

    def hours(self, tokens_per_second: float) -> tuple[float, float]:
        """Hours of training and of validation at a speed of each GPU."""
        speed = 3600 * tokens_per_second
        return self.rounds * self.train_tokens / speed, self.validations * self.val_tokens / speed


def schedule(trainer: Any, plan: Plan, num_train: int, num_val: int) -> Schedule:
    """Schedule of a run on `plan.world_size` GPUs.

    Args:
        trainer: Settings of the trainer: `max_epochs`, `max_steps`, `val_check_interval`, `check_val_every_n_epoch`.
        plan: Settings that memory depends on.
        num_train: Number of training studies.
        num_val: Number of validation studies.
    """
    own = -(-num_train // plan.world_size)  # the first studies are repeated until all GPUs have the same number
    batches = max(1, own // plan.batch_size)  # an incomplete last batch is left out
    limit = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else (None if limit else 1000)
    rounds = min(count for count in (limit, None if epochs is None else epochs * batches) if count is not None)
    every = trainer.val_check_interval if trainer.val_check_interval is not None else 1.0
    if isinstance(every, float):
        per_epoch = batches // max(1, int(batches * every))
        every_epochs = trainer.check_val_every_n_epoch or 1
        full, rest = divmod(rounds, batches)
        validations = full // every_epochs * per_epoch + (rest // max(1, int(batches * every)) if rest else 0)
    else:
        validations = rounds // int(every)
    completions = plan.prompt_tokens + plan.group_size * plan.max_new_tokens
    greedy = -(-num_val // plan.world_size) * (plan.prompt_tokens + plan.max_new_tokens)
    return Schedule(rounds, validations, plan.batch_size * completions, greedy)


def format_schedules(schedules: dict[int, Schedule], plan: Plan, tokens_per_second: float) -> str:
    """Lines of a table with one column per number of GPUs.

    Args:
        schedules: Number of GPUs -> schedule.
        plan: Settings that memory depends on.
        tokens_per_second: Speed of each GPU; 0 leaves out the hours.
    """
    rows: list[tuple[str, list[str]]] = [
        ("studies per round", [f"{count * plan.batch_size:,}" for count in schedules]),
        ("rounds", [f"{schedule.rounds:,}" for schedule in schedules.values()]),
        ("validations", [f"{schedule.validations:,}" for schedule in schedules.values()]),
    ]
    if tokens_per_second:
        hours = [schedule.hours(tokens_per_second) for schedule in schedules.values()]
        rows += [
            ("hours of training, estimated", [f"{train:.1f}" for train, _ in hours]),
            ("hours of validation, estimated", [f"{val:.1f}" for _, val in hours]),
        ]
    return "\n".join(f"{name:<36}" + "".join(f"{value:>9}" for value in values) for name, values in rows)
