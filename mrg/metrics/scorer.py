"""Any per-report scorer as a metric: RadGraph, RaTEScore, GREEN or your own, none of them a dependency.

A scorer is a callable from two lists of strings, reports and references, to one number per report. Worked examples of
the packages above are in docs/scorers.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mrg.errors import UserError, UserTypeError
from mrg.metrics.imports import import_named, name_of
from mrg.metrics.labels import Scorer, check_pairs, identity
from mrg.metrics.metric import ReportMetric


def optional_scores(scorer: Scorer, preds: Sequence[str], target: Sequence[str], name: str) -> list[float | None]:
    """Call a scorer and check its arguments and values; values need not be finite here.

    Args:
        scorer: Scorer, called without gradients, and not at all if there is no report.
        preds: N reports.
        target: N references.
        name: Name of the scorer in messages.

    Returns:
        N numbers; None if the scorer returned None for a report, to which it then does not apply.

    Raises:
        UserError: If the lengths differ, or the scorer does not return N numbers.
        UserTypeError: If something in `preds` or `target` is not a string.
    """
    check_pairs(preds, target)
    if not preds:
        return []
    with torch.no_grad():  # a scorer that is a network would keep its graph
        values = scorer(list(preds), list(target))
    try:
        given = list(values)
    except TypeError as error:
        raise UserError(f"Expected scorer `{name}` to return a list, but got {type(values).__name__}.") from error
    if len(given) != len(preds):
        raise UserError(
            f"Expected scorer `{name}` to return {len(preds)} values, one per report, but got {len(given)}."
        )
    scores: list[float | None] = []
    for index, value in enumerate(given):
        try:
            scores.append(None if value is None else float(value))
        except (TypeError, ValueError, RuntimeError) as error:  # the last one from a tensor of several numbers
            raise _not_a_number(name, value, index) from error
    return scores


def _not_a_number(name: str, value: object, index: int) -> UserError:
    return UserError(f"Expected scorer `{name}` to return numbers, but got {type(value).__name__} for report {index}.")


class ReportScore(ReportMetric):
    """Corpus mean of a per-report score.

    Args:
        scorer: Scorer, see `mrg.metrics.labels.Scorer`.
        name: Name in messages and, with `as_reward`, in logs; the scorer's own name by default.
        higher_is_better: Whether a larger value is a better report; False if the scorer has such an attribute that is.
        kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        UserTypeError: If the scorer is a class, a metric, or cannot be called.

    Example:
        >>> def share_of_words(preds, target):
        ...     return [len(set(p.split()) & set(t.split())) / len(set(t.split())) for p, t in zip(preds, target)]
        >>> metric = ReportScore(share_of_words)
        >>> metric.update(["no effusion", "edema"], ["no edema", "edema"])
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    scorer: Scorer
    total: Tensor
    num: Tensor

    def __init__(self, scorer: Scorer, name: str | None = None, higher_is_better: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check_scorer(scorer, "argument `scorer`")
        self.name = name or name_of(scorer)
        # Not a submodule: its weights stay out of checkpoints, and train() does not reach its dropout.
        object.__setattr__(self, "scorer", scorer)
        upward = higher_is_better and is_upward(scorer)
        object.__setattr__(self, "higher_is_better", upward)  # torchmetrics allows it on classes alone
        # A collection updates metrics together if their states are equal after a batch: another scorer, another state.
        self.add_state("settings", torch.tensor(identity(scorer)), dist_reduce_fx="max")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def scores(self, preds: Sequence[str], target: Sequence[str]) -> Tensor:
        """Score each report without changing the metric's state: (N,) float64 on the CPU.

        Raises:
            UserError: If the lengths differ, or the scorer does not return N finite numbers.
            UserTypeError: If something in `preds` or `target` is not a string.
        """
        scores = []
        for index, score in enumerate(optional_scores(self.scorer, preds, target, self.name)):
            if score is None:
                raise _not_a_number(self.name, score, index)
            if not math.isfinite(score):
                raise UserError(
                    f"Expected scorer `{self.name}` to return finite values, but got {score} for report {index}."
                )
            scores.append(score)
        return torch.tensor(scores, dtype=torch.float64)

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Add N reports, checked as in `scores`."""
        scores = self.scores(preds, target)
        self.total += scores.sum().to(self.total.device)
        self.num += len(scores)

    def compute(self) -> Tensor:
        """Mean over the reports, float64."""
        return self.total / self.num


def _check_scorer(value: Any, what: str) -> None:
    """Check that a value may be a scorer; a metric can be called too, but gives one number per batch."""
    if isinstance(value, type):
        got = f"the class {value.__name__}, not an object made from it"
    elif isinstance(value, Metric):
        got = f"the metric {type(value).__name__}"
    elif not callable(value):
        got = f"an object of type {type(value).__name__}"
    else:
        return
    raise UserTypeError(f"Expected {what} to be a function of two lists of strings, but got {got}.")


def is_upward(scorer: Scorer) -> bool:
    """Whether larger values of a scorer are better: its attribute `higher_is_better`, True without one."""
    return getattr(scorer, "higher_is_better", True) is not False


def load_scorer(path: str) -> Scorer:
    """Import a scorer by name, for the command line.

    Args:
        path: `"package.module:function"`; attributes of attributes are separated by dots.

    Raises:
        UserError: If the name has another form, or the attribute does not exist.
        MissingPackageError: If the module cannot be imported; the message says why.
        UserTypeError: If it is neither a function nor an object that can be called.
    """
    scorer: Scorer = import_named(path, "scorer", "function")
    _check_scorer(scorer, f"scorer {path!r}")
    return scorer
