"""Any per-report scorer as a metric: RadGraph, RaTEScore, GREEN or your own plug in without becoming a dependency.

A scorer is a callable from two lists of strings, reports and references, to one number per report. Worked examples of
the packages above are in docs/scorers.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mrg.errors import UserError, UserTypeError
from mrg.metrics.labelers.base import check_pairs
from mrg.metrics.labels import Scorer, identity
from mrg.metrics.named import import_named, name_of


def optional_scores(scorer: Scorer, preds: Sequence[str], target: Sequence[str], name: str) -> list[float | None]:
    """Call a scorer and check what it takes and gives; values need not be finite here.

    Args:
        scorer: See `Scorer`; called without gradients, and not at all where there is no report.
        preds: N reports.
        target: N references.
        name: Stands in messages.

    Returns:
        N numbers; None where the scorer returned it, which says that it does not apply to the report.

    Raises:
        TypeError: If something in `preds` or `target` is not a string.
        ValueError: If the lengths differ, or the scorer does not return N numbers.
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
            raise _no_number(name, value, index) from error
    return scores


def score_reports(scorer: Scorer, preds: Sequence[str], target: Sequence[str], name: str) -> Tensor:
    """`optional_scores` where each report must have one: (N,) float64 on the CPU.

    Raises:
        TypeError: If something in `preds` or `target` is not a string.
        ValueError: If the lengths differ, or the scorer does not return N numbers.
    """
    scores = optional_scores(scorer, preds, target, name)
    if None in scores:
        raise _no_number(name, None, scores.index(None))
    return torch.tensor(scores, dtype=torch.float64)


def _no_number(name: str, value: object, index: int) -> ValueError:
    return ValueError(f"Expected scorer `{name}` to return numbers, but got {type(value).__name__} for report {index}.")


def first_not_finite(scores: Tensor) -> int | None:
    """Index of the first nan or infinity of (N,) scores; None where all are finite."""
    bad = (~scores.isfinite()).nonzero()
    return int(bad[0]) if len(bad) else None


class ReportScore(Metric):
    """Corpus mean of a per-report score.

    Args:
        scorer: See `Scorer`.
        name: Stands in messages and, by `as_reward`, in logs; the scorer's own name by default.
        higher_is_better: Whether a larger value is a better report.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        TypeError: If the scorer is a class, a metric, or nothing that can be called.

    Example:
        >>> def share_of_words(preds, target):
        ...     return [len(set(p.split()) & set(t.split())) / len(set(t.split())) for p, t in zip(preds, target)]
        >>> metric = ReportScore(share_of_words)
        >>> metric.update(["no effusion", "edema"], ["no edema", "edema"])
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    full_state_update = False
    scorer: Scorer
    total: Tensor
    num: Tensor

    def __init__(self, scorer: Scorer, name: str | None = None, higher_is_better: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        what = _why_no_scorer(scorer)
        if what:
            raise UserTypeError(f"Expected argument `scorer` to be a function of two lists of strings, but got {what}.")
        self.name = name or name_of(scorer)
        # Not a submodule: its weights must not leak into checkpoints, nor train() reach its dropout.
        object.__setattr__(self, "scorer", scorer)
        object.__setattr__(self, "higher_is_better", higher_is_better)  # torchmetrics keeps it for classes alone
        # A collection updates metrics together whose states are equal after a batch: another scorer, another state.
        self.add_state("settings", torch.tensor(identity(scorer)), dist_reduce_fx="max")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def scores(self, preds: Sequence[str], target: Sequence[str]) -> Tensor:
        """Score reports without touching the state: (N,) float64 on the CPU.

        Raises:
            TypeError: If something in `preds` or `target` is not a string.
            ValueError: If the lengths differ, or the scorer does not return N finite numbers.
        """
        scores = score_reports(self.scorer, preds, target, self.name)
        index = first_not_finite(scores)
        if index is not None:
            raise UserError(
                f"Expected scorer `{self.name}` to return finite values, but got {float(scores[index])} "
                f"for report {index}."
            )
        return scores

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Add reports; see `scores` for what is checked."""
        scores = self.scores(preds, target)
        self.total += scores.sum().to(self.total.device)
        self.num += len(scores)

    def compute(self) -> Tensor:
        """The mean, float64."""
        return self.total / self.num


def _why_no_scorer(value: Any) -> str:
    """What a value is that is no scorer; empty where it may be one."""
    if isinstance(value, type):
        return f"the class {value.__name__}, not an object made from it"
    if isinstance(value, Metric):  # can be called too, but gives one number per batch
        return f"the metric {type(value).__name__}"
    return "" if callable(value) else f"an object of type {type(value).__name__}"


def load_scorer(path: str) -> Scorer:
    """Import a scorer by name, for the command line.

    Args:
        path: `"package.module:function"`; an attribute of an attribute is separated by a dot.

    Raises:
        ValueError: If the form is another one, or the attribute is missing.
        ImportError: If the module cannot be imported; the message says why.
        TypeError: If what was found is no function and no object to call.
    """
    found = import_named(path, "scorer", "function")
    what = _why_no_scorer(found)
    if what:
        raise UserTypeError(f"Expected scorer {path!r} to be a function of two lists of strings, but it is {what}.")
    scorer: Scorer = found
    return scorer
