"""Metrics that distinguish a healthy round of GRPO from a collapse, and the time of its phases."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mrg.errors import RunError
from mrg.metrics import CONDITIONS
from mrg.metrics.conditions import stated
from mrg.modules.rl.advantage import dead_groups, num_missing
from mrg.modules.rl.reward import Rewards, join_rewards

if TYPE_CHECKING:
    from mrg.datamodules.collate import Batch
    from mrg.modules.rollout.sampling import Rollout


LOWER = {
    "selection": "lower data.init_args.eval_batch_size or select.samples",
    "vision": "lower data.init_args.batch_size, model.init_args.max_pixels or max_views",
    "rollout": "lower data.init_args.batch_size, model.init_args.rollout.group_size or max_new_tokens",
    "reward": "give the labeler another device or smaller batches",
    "reference": "lower model.init_args.micro_batch_tokens",
    "policy": "lower model.init_args.micro_batch_tokens, or set gradient_checkpointing to true",
}
"""Phase -> remedy if it runs out of memory."""
BY_STEP = {"loss", "grad_norm"}
"""Values that are means over steps already, on each rank."""
BY_COMPLETION = {"logp_gap", "entropy", "corrected", "off_policy"}
"""Sums over all completions that were computed; all other sums are over those that enter the loss."""


@dataclasses.dataclass
class Outcome:
    """Outcome of a round, or of the part of a rank.

    Args:
        rewards: Rewards of N completions.
        length: (N,) tokens of the completions, on the CPU.
        truncated: (N,) bool, on the CPU.
        num_distinct: Number of distinct texts per group, summed over groups.
        num_tokens: Number of tokens: prompts once, and completions.
        teaches: Whether any completion that enters the loss has an advantage.
        sums: Sums of the optimizer steps, see `GRPOModule.update`.
        advantages: (N,) advantages of the completions, on the CPU; None if they are not logged.
        learned: Rewards of the completions that the advantages belong to, if reference reports have taken the place of
            some; None if these are the policy's own.
    """

    rewards: Rewards
    length: Tensor
    truncated: Tensor
    num_distinct: int
    num_tokens: int
    teaches: bool
    sums: dict[str, float]
    advantages: Tensor | None = None
    learned: Rewards | None = None

    @property
    def trained_on(self) -> Rewards:
        """Rewards of the completions that the policy learns from."""
        return self.rewards if self.learned is None else self.learned

    @staticmethod
    def of(
        rollout: Rollout,
        rewards: Rewards,
        group_size: int,
        num_tokens: int,
        teaches: Tensor,
        sums: Mapping[str, Tensor],
        advantages: Tensor | None = None,
        learned: Rewards | None = None,
    ) -> Outcome:
        """Outcome of the part of a rank, on the CPU.

        Args:
            rollout: N completions.
            rewards: Rewards of the completions.
            group_size: Completions per study.
            num_tokens: Number of tokens: prompts once, and completions.
            teaches: (N,) bool, True for completions that enter the loss and have an advantage.
            sums: Sums of the optimizer steps.
            advantages: (N,) advantages of the completions.
            learned: Rewards of the completions that the advantages belong to, if they are others.
        """
        groups = [rollout.texts[i : i + group_size] for i in range(0, len(rollout.texts), group_size)]
        return Outcome(
            rewards,
            rollout.completion_mask.sum(1).cpu(),
            rollout.truncated.cpu(),
            sum(len(set(group)) for group in groups),
            num_tokens,
            bool(teaches.any()),
            {name: float(value) for name, value in sums.items()},
            None if advantages is None else advantages.cpu(),
            learned,
        )

    @staticmethod
    def joined(parts: Sequence[Outcome]) -> Outcome:
        """Outcome of the whole round, in the order of ranks."""
        sums: dict[str, float] = {}
        for part in parts:
            for name, value in part.sums.items():
                sums[name] = sums.get(name, 0.0) + value
        sums |= {name: sums[name] / len(parts) for name in sums if name in BY_STEP}
        return Outcome(
            join_rewards([part.rewards for part in parts]),
            torch.cat([part.length for part in parts]),
            torch.cat([part.truncated for part in parts]),
            sum(part.num_distinct for part in parts),
            sum(part.num_tokens for part in parts),
            any(part.teaches for part in parts),
            sums,
            None if parts[0].advantages is None else torch.cat([part.advantages for part in parts]),  # type: ignore
            None if parts[0].learned is None else join_rewards([part.trained_on for part in parts]),
        )


class Monitor:
    """Numbers of a round, and the times of its phases.

    Args:
        group_size: Completions per study.
    """

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Context whose time is added to a phase of the round."""
        start = _now()
        try:
            yield
        except torch.OutOfMemoryError as error:
            peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
            raise RunError(
                f"Out of GPU memory in the phase {name!r} ({peak:.1f} GiB were in use): {LOWER[name]}."
            ) from error
        self.seconds[name] = self.seconds.get(name, 0.0) + _now() - start

    def round(self, outcome: Outcome, signal: Tensor | None = None) -> dict[str, float]:
        """Numbers of a round; resets the times.

        Args:
            outcome: Outcome of all ranks.
            signal: (N,) what completions of a group are compared by; their total reward if None.

        Returns:
            Log key -> value, of the policy's own completions except for dead groups and advantages: mean and standard
            deviation of the reward and its parts; shares of completions without any reward (`train/missing`), of dead
            groups, and of distinct, truncated and findings-free completions; lengths; mean advantage of completions
            with a correct finding, with hallucinated findings only, and without findings (`advantage/right`, `/wrong`,
            `/silent`); recall of each condition in the references; means over the optimizer steps; seconds of each
            phase on this rank, and tokens per second of all ranks.
        """
        rewards, learned, length = outcome.rewards, outcome.trained_on, outcome.length.double()
        signal = learned.total if signal is None else signal
        found, wanted = (stated(x[:, :13]) for x in rewards.labels)
        values = {
            **_mean_and_std("total", rewards.total, rewards.scored),
            "train/missing": num_missing(rewards.scored) / len(rewards.total),
            "train/dead_groups": float(dead_groups(signal, self.group_size, learned.scored).double().mean()),
            "train/distinct": outcome.num_distinct / len(rewards.total),
            "train/truncated": float(outcome.truncated.double().mean()),
            "train/nothing_found": float((~found.any(1)).double().mean()),
            "train/length": float(length.mean()),
            "train/length_min": float(length.min()),
            "train/length_max": float(length.max()),
        }
        for name, part in rewards.parts.items():
            values |= _mean_and_std(name, part, rewards.present.get(name))
        for column in wanted.any(0).nonzero()[:, 0].tolist():
            rows = wanted[:, column]
            values[f"recall/{CONDITIONS[column].lower().replace(' ', '_')}"] = float(
                found[rows, column].double().mean()
            )
        if outcome.advantages is not None:
            values |= _advantages(outcome.advantages, *(stated(x[:, :13]) for x in learned.labels))
        values |= {f"train/{name}": value for name, value in _means(outcome.sums).items()}
        values |= {f"seconds/{name}": value for name, value in self.seconds.items()}
        # A measurement before the round has tokens of its own.
        if total := sum(value for name, value in self.seconds.items() if name != "selection"):
            values["train/tokens_per_second"] = outcome.num_tokens / total
        self.seconds = {}
        return values


class Patience:
    """Ends a run that no longer learns.

    Args:
        limit: Number of consecutive steps without a finite loss and gradient, or of consecutive rounds without a
            signal, after which the run ends.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bad_steps = self.dead_rounds = 0

    def state_dict(self) -> dict[str, int]:
        """Current counts."""
        return {"bad_steps": self.bad_steps, "dead_rounds": self.dead_rounds}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the counts; an empty state resets them."""
        self.bad_steps, self.dead_rounds = state.get("bad_steps", 0), state.get("dead_rounds", 0)

    def takes(self, norm: Tensor, round_index: int, loss: float = 0.0) -> bool:
        """Whether to take a step with a gradient of this norm and this loss, which are equal on all ranks.

        A token of probability 0 makes the loss infinite, while its gradient is finite.

        Raises:
            RunError: If too many consecutive gradients or losses were not finite.
        """
        finite = bool(norm.isfinite())
        self.bad_steps = 0 if finite and math.isfinite(loss) else self.bad_steps + 1
        if self.bad_steps >= self.limit:
            what = f"The loss was {loss}" if finite else f"The gradient's norm was {float(norm)}"
            remedy = "check that the policy can write its targets, or " if finite else ""
            raise RunError(
                f"{what} in {self.bad_steps} steps in a row, the last in round {round_index}: {remedy}lower "
                "model.init_args.optimizer.learning_rate."
            )
        return not self.bad_steps

    def watch(self, dead: bool) -> None:
        """Count consecutive rounds without a signal: neither an advantage nor a KL term.

        Args:
            dead: Whether this round had none, on all ranks.

        Raises:
            RunError: If there are too many.
        """
        self.dead_rounds = self.dead_rounds + 1 if dead else 0
        if self.dead_rounds >= self.limit:
            raise RunError(
                f"All groups had equal rewards in {self.dead_rounds} rounds in a row, or what differed was truncated "
                "and masked: nothing can be learned. Raise model.init_args.rollout.temperature, rollout.group_size or "
                "max_new_tokens, lower margin, or train more with SFT first."
            )


def first_group(
    rollout: Rollout, rewards: Rewards, batch: Batch, group_size: int, round_index: int
) -> list[dict[str, Any]]:
    """Completions of the first study of a round with their rewards: one dict per completion."""
    return [
        {
            "round": round_index,
            "id": batch.study_id[0],
            "completion": rollout.texts[row],
            "reward": _number(rewards.total, rewards.scored, row),
            **{name: _number(value, rewards.present.get(name), row) for name, value in rewards.parts.items()},
            "truncated": bool(rollout.truncated[row]),
            "target": batch.target[0],
        }
        for row in range(group_size)
    ]


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over completions and steps; a value without completions is left out."""
    means = {}
    for name, value in sums.items():
        if name in BY_STEP:
            means[name] = value
        elif name not in ("computed", "counted"):
            count = sums["computed" if name in BY_COMPLETION else "counted"]
            if count:
                means[name] = value / count
    return means


def _advantages(advantages: Tensor, found: Tensor, true: Tensor) -> dict[str, float]:
    """Mean advantage of completions with a correct finding, with hallucinated findings only, and without findings."""
    right, silent = (found & true).any(1), ~found.any(1)
    kinds = {"right": right, "wrong": ~right & ~silent, "silent": silent}
    return {f"advantage/{name}": float(advantages[rows].mean()) for name, rows in kinds.items() if bool(rows.any())}


def _mean_and_std(name: str, values: Tensor, present: Tensor | None) -> dict[str, float]:
    """Log keys of a reward; none if it is missing everywhere."""
    here = values if present is None else values[present]
    if not len(here):
        return {}
    return {
        f"reward/{name}": float(here.mean()),
        f"reward/{name}_std": float(here.std(correction=min(1, len(here) - 1))),
    }


def _number(values: Tensor, present: Tensor | None, row: int) -> float | None:
    return float(values[row]) if present is None or bool(present[row]) else None


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # work is queued: otherwise a phase would end before its work does
    return time.perf_counter()
