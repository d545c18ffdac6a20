"""From what users pass, strings or labels, to checked label tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrg.errors import UserError, UserTypeError
from mrg.metrics.conditions import NUM_CONDITIONS
from mrg.metrics.labelers.base import check_texts

Labeler = Callable[[Sequence[str]], Tensor]
"""Reports in, (N, 14) int64 label classes out, in the order of `CONDITIONS`; see `labelers.base.Labeler`."""

Reports = Tensor | Sequence[str]
"""N reports: their (N, 14) label classes, or their texts where a labeler is given."""

Scorer = Callable[[Sequence[str], Sequence[str]], Any]
"""N generated and N reference reports in, N numbers out: a list, an array or a tensor; a reward may give None too."""


def identity(value: object) -> list[int]:
    """Bytes that tell a labeler or scorer from every other one, for a metric's state.

    A `MetricCollection` updates metrics together whose states are close after a batch; another labeler must be another
    state. Bytes, because addresses as they are differ by less than the relative tolerance of that comparison.
    """
    return list(id(value).to_bytes(8, "little"))


def as_labels(preds: Reports, target: Reports, labeler: Labeler | None = None) -> tuple[Tensor, Tensor]:
    """Label strings and check shapes and values; texts of both sides are labelled in one call.

    Args:
        preds: N reports.
        target: N reports.
        labeler: Needed where strings come.

    Returns:
        Two int64 tensors (N, 14).

    Raises:
        ValueError: If lengths differ, strings come without a labeler, or a tensor does not hold label classes.
        TypeError: If something is neither a label tensor nor a list of strings.
    """
    sides = {"preds": texts_or_labels(preds, "preds"), "target": texts_or_labels(target, "target")}
    lengths = [len(side) for side in sides.values()]
    if lengths[0] != lengths[1]:
        raise UserError(
            f"Expected `preds` and `target` to have the same length, but got {lengths[0]} and {lengths[1]}."
        )
    texts = {name: side for name, side in sides.items() if isinstance(side, list)}
    check_labeler(labeler)
    if texts and not lengths[0]:
        return tuple(torch.zeros(0, NUM_CONDITIONS, dtype=torch.int64) for _ in sides)  # type: ignore[return-value]
    if texts:
        if labeler is None:
            raise UserError(f"Expected argument `labeler` to be given where `{next(iter(texts))}` holds strings.")
        pool = [text for side in texts.values() for text in side]
        labels = labeler(pool)
        if tuple(labels.shape) != (len(pool), NUM_CONDITIONS):
            raise UserError(
                f"Expected the labeler to return ({len(pool)}, {NUM_CONDITIONS}) labels, but got {tuple(labels.shape)}."
            )
        for part, name in enumerate(texts):
            sides[name] = labels[part * lengths[0] : (part + 1) * lengths[0]]
    checked = [_check_labels(side, name) for name, side in sides.items()]
    # A labeler may answer from another device than the one a given label tensor is on.
    return checked[0], checked[1].to(checked[0].device)


def check_labeler(labeler: Any) -> None:
    """Raise where a labeler cannot be called with reports.

    Raises:
        TypeError: If it is a class, or nothing that can be called.
    """
    if isinstance(labeler, type):
        raise UserTypeError(
            f"Expected argument `labeler` to be an object, but got the class: write {labeler.__name__}()."
        )
    if labeler is not None and not callable(labeler):
        raise UserTypeError(f"Expected argument `labeler` to be a labeler such as RulesLabeler(), but got {labeler!r}.")


def written(preds: Tensor | list[str]) -> Tensor | None:
    """(N,) bool: which texts hold anything but white space; None where labels are given."""
    if isinstance(preds, Tensor):
        return None
    return torch.tensor([bool(text.strip()) for text in preds], dtype=torch.bool)


def require_reports(labels: Tensor) -> None:
    """Raise where there is nothing to score; a stream may get an empty batch, a function may not.

    Raises:
        ValueError: If there are no rows.
    """
    if not len(labels):
        raise UserError("Expected at least one report in `preds` and `target`, but got none.")


def texts_or_labels(value: Any, name: str) -> Any:
    """A tensor, or a list of strings: whatever else holds them is copied once."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb":
        kind = np.int64 if value.dtype.kind in "iu" else value.dtype
        return torch.from_numpy(np.ascontiguousarray(value, dtype=kind))
    if value is None or not hasattr(value, "__iter__"):
        raise UserTypeError(
            f"Expected argument `{name}` to be a label tensor (N, 14) or a list of strings, but got {value!r}."
        )
    texts = value if isinstance(value, str) else list(value)
    check_texts(texts, name)
    return texts


def _check_labels(value: Tensor, name: str) -> Tensor:
    if value.ndim != 2 or value.shape[1] != NUM_CONDITIONS:
        raise UserError(f"Expected argument `{name}` to be of shape (N, 14), but got {tuple(value.shape)}.")
    if value.is_floating_point() or value.dtype == torch.bool:
        raise UserError(f"Expected argument `{name}` to hold integers, but got {value.dtype}.")
    value = value.to(torch.int64)
    if value.numel():
        low, high = (int(x) for x in value.aminmax())
        if low < 0 or high > 3:
            raise UserError(f"Expected argument `{name}` to hold label classes 0..3, but got {low}..{high}.")
    return value
