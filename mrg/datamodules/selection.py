"""Which training studies are drawn: those whose rewards vary, because a group of equal rewards has no gradient.

Before training, and again every few rounds if asked for, the module samples completions of every training study and
measures the mean and the standard deviation of their rewards (`mrg.modules.selection`). With `use: keep`, all studies
whose deviation is above `least` are drawn equally often; with `use: weight`, as often as their deviation says, which is
what the advantages of a group are proportional to before they are divided by it. All others are left out until the
next measurement.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mrg.errors import RunError, UserError
from mrg.metrics.conditions import CONDITIONS


@dataclasses.dataclass(frozen=True)
class Selection:
    """Selection of the training studies whose rewards vary.

    Args:
        by: `"variance"`, that of the reward over completions of one study.
        use: `"keep"` draws the studies whose rewards vary equally often, `"weight"` in proportion to the standard
            deviation of their rewards.
        samples: Completions per study in a measurement.
        studies: Number of studies that a measurement samples, chosen at random; the others are not drawn until the next
            one. 0 samples all.
        every: Rounds between two measurements, which then make an epoch; 0 measures once, before training.
        least: Standard deviation of the reward up to which a study is left out.
    """

    by: Literal["variance"] = "variance"
    use: Literal["keep", "weight"] = "keep"
    samples: int = 8
    studies: int = 0
    every: int = 0
    least: float = 0.0

    def __post_init__(self) -> None:
        for name, value, choices in (("by", self.by, ("variance",)), ("use", self.use, ("keep", "weight"))):
            if value not in choices:
                expected = " or ".join(map(repr, choices))
                raise UserError(f"Expected data.init_args.select.{name} to be {expected}, but got {value!r}.")
        counts = (("samples", self.samples, 2), ("studies", self.studies, 0), ("every", self.every, 0))
        for name, number, least in counts:
            if number < least:
                raise UserError(f"Expected data.init_args.select.{name} to be at least {least}, but got {number}.")
        if not 0 <= self.least < math.inf:
            raise UserError(f"Expected data.init_args.select.least to be at least 0, but got {self.least}.")


Select = Selection | Literal["variance"] | None


def as_selection(select: Any) -> Selection | None:
    """The settings that `data.init_args.select` stands for, given in words, as a dict or as they are.

    Raises:
        UserError: If it is neither `"variance"` nor a `Selection` nor None.
    """
    if select is None or isinstance(select, Selection):
        return select
    if isinstance(select, Mapping):
        return Selection(**select)
    if select == "variance":
        return Selection()
    raise UserError(f"Expected data.init_args.select to be 'variance' or its settings, but got {select!r}.")


def check_reward(select: Selection | None, module: Any) -> None:
    """Check that a module can measure the rewards of studies.

    Raises:
        UserError: If it has no reward.
    """
    if select is not None and not hasattr(module, "measure"):
        raise UserError(
            f"data.init_args.select needs a reward, which {type(module).__name__} does not have: set it to null, or "
            "train with GRPOModule."
        )


class Measured(NamedTuple):
    """Rewards of the N training studies, measured before the first round of an epoch.

    Args:
        epoch: Index of the epoch.
        mean: (N,) float64 mean rewards; nan where there are none.
        deviation: (N,) float64 standard deviations with Bessel's correction; 0 where there are fewer than two rewards,
            nan for studies that were not sampled.
    """

    epoch: int
    mean: Tensor
    deviation: Tensor

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return self._asdict()

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Measured:
        """Resume from a checkpoint."""
        return cls(int(state["epoch"]), state["mean"], state["deviation"])

    def is_due(self, select: Selection, epoch: int) -> bool:
        """Whether another measurement is due before an epoch."""
        return bool(select.every) and self.epoch != epoch


def selected_weights(select: Selection, deviation: Tensor, balance: Tensor | None = None) -> Tensor:
    """(N,) float64: how often each study is drawn, 0 for those that are left out.

    Args:
        select: Settings.
        deviation: (N,) standard deviations of the rewards; nan for studies that were not sampled.
        balance: (N,) factors, see `mrg.datamodules.balance`.

    Raises:
        RunError: If all studies would be left out.
    """
    kept = deviation > select.least
    if not bool(kept.any()):
        what = "do not differ" if not select.least else f"have a standard deviation of at most {select.least}"
        raise RunError(
            f"The rewards of each of {int((~deviation.isnan()).sum())} training studies {what} over {select.samples} "
            "completions: nothing can be learned. Raise model.init_args.rollout.temperature or "
            "data.init_args.select.samples, lower data.init_args.select.least, or train more with SFT first."
        )
    weights = (torch.ones_like(deviation) if select.use == "keep" else deviation).where(kept, 0.0)
    return weights if balance is None else weights * balance


def describe_selection(select: Selection, measured: Measured, found: Tensor) -> str:
    """Describe in one line how many studies are left out, and of which conditions.

    Args:
        select: Settings.
        measured: Measured rewards.
        found: (N, 14) bool, True where the reference of a study states a condition.
    """
    rows = ~measured.deviation.isnan()
    found, out = found[rows], measured.deviation[rows] <= select.least
    total, lost = found.sum(0).tolist(), found[out].sum(0).tolist()
    conditions = [f"{name} {lost[k]:,} of {total[k]:,}" for k, name in enumerate(CONDITIONS) if total[k]]
    silent = ~found.any(1)
    if bool(silent.any()):
        conditions.append(f"no condition {int((silent & out).sum()):,} of {int(silent.sum()):,}")
    mean = measured.mean[~measured.mean.isnan()].mean()
    sampled = "" if bool(rows.all()) else f" that were sampled of {len(rows):,}"
    return (
        f"Selection by variance: {int(out.sum()):,} of {len(out):,} training studies{sampled} are left out, because "
        f"their rewards do not vary enough over {select.samples} completions (mean reward {float(mean):.3f}). Left out "
        f"of those that state {', '.join(conditions)}."
    )
