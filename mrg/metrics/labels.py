"""Labelers and their input: the interface of labelers, and reports as strings or labels, checked and labelled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrg.errors import UserError, UserTypeError
from mrg.log import log
from mrg.metrics.conditions import NUM_CONDITIONS
from mrg.metrics.packed import digest_text, distinct, pick


class Labeler(ABC):
    """Base class of labelers, which classify what a report states about each of the 14 conditions.

    Metrics accept any callable of this form. A labeler that a configuration names
    (`model.init_args.labeler.class_path`) must be a subclass, because jsonargparse would take a callable protocol for a
    factory of its return value. Results contain `name`.
    """

    name: str

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports.

        Args:
            texts: N reports; an empty one mentions nothing.

        Returns:
            int64 (N, 14) on the CPU or on the labeler's device, columns in the order of
            `mrg.metrics.conditions.CONDITIONS`, values BLANK 0, POSITIVE 1, NEGATIVE 2, UNCERTAIN 3. Equal texts get
            equal rows, whatever other texts are in the call.
        """


class CachingLabeler(Labeler):
    """A labeler that labels each text once, and stores 30 bytes per text.

    Args:
        labeler: Labeler, or any callable of its form.
        known: Text -> its (14,) label classes, for texts that have been labelled already.
    """

    def __init__(self, labeler: Any, known: Mapping[str, Tensor] | None = None) -> None:
        self.labeler, self.name = labeler, str(getattr(labeler, "name", type(labeler).__name__))
        self._rows = {digest_text(text): bytes(row.tolist()) for text, row in (known or {}).items()}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports."""
        names = [digest_text(text) for text in texts]
        new = {name: text for name, text in zip(names, texts, strict=True) if name not in self._rows}
        if new:
            rows = run_labeler(self.labeler, list(new.values())).cpu().to(torch.uint8).numpy()
            self._rows.update(zip(new, map(bytes, rows), strict=True))
        flat = np.frombuffer(b"".join(self._rows[name] for name in names), np.uint8)
        return torch.from_numpy(flat.reshape(-1, NUM_CONDITIONS).astype(np.int64))

    def __getattr__(self, name: str) -> Any:
        if name == "labeler":  # a copy that has no attributes yet
            raise AttributeError(name)
        return getattr(self.labeler, name)  # such as `evidence`


_AT_ONCE = 50_000

Reports = Tensor | Sequence[str]
"""N reports: their (N, 14) label classes, or their texts if a labeler is given."""

Scorer = Callable[[Sequence[str], Sequence[str]], Any]
"""Callable from N generated and N reference reports to N numbers: a list, an array or a tensor. A scorer that serves as
a reward may also return None for a report."""


def identity(value: object) -> list[int]:
    """Bytes that distinguish a labeler or scorer from every other one, for a metric's state.

    A `MetricCollection` updates metrics together if their states are close after a batch; another labeler must be
    another state. Bytes, because addresses differ by less than the relative tolerance of that comparison.
    """
    return list(id(value).to_bytes(8, "little"))


def as_labels(preds: Reports, target: Reports, labeler: Labeler | None = None) -> tuple[Tensor, Tensor]:
    """Label strings, in one call for both sides, and check shapes and values.

    Args:
        preds: N reports.
        target: N reports.
        labeler: Labeler, or any callable of its form; required for strings.

    Returns:
        Two int64 tensors (N, 14).

    Raises:
        UserError: If lengths differ, strings come without a labeler, or a tensor does not hold label classes.
        UserTypeError: If an argument is neither a label tensor nor a list of strings.
    """
    sides = {"preds": texts_or_labels(preds, "preds"), "target": texts_or_labels(target, "target")}
    lengths = [len(side) for side in sides.values()]
    if lengths[0] != lengths[1]:
        raise UserError(
            f"Expected `preds` and `target` to have the same length, but got {lengths[0]} and {lengths[1]}."
        )
    texts = {name: side for name, side in sides.items() if isinstance(side, list)}
    check_labeler(labeler)
    if texts and labeler is None and lengths[0]:
        raise UserError(f"Expected argument `labeler` to be given where `{next(iter(texts))}` holds strings.")
    sides |= dict(zip(texts, _label(labeler, list(texts.values())), strict=True))
    checked = [_check_labels(side, name) for name, side in sides.items()]
    # A labeler may return labels on another device than that of a given label tensor.
    return checked[0], checked[1].to(checked[0].device)


def label_together(labeler: Labeler, *sides: Sequence[str]) -> list[Tensor]:
    """Label several lists of reports, see `label_distinct`.

    Returns:
        An int64 tensor (N, 14) for each list.
    """
    table, rows = label_distinct(labeler, *sides)
    return [table[row].to(torch.int64) for row in rows]


def label_distinct(labeler: Labeler, *sides: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Label each distinct report of several lists once; more than `_AT_ONCE` in several calls of the labeler.

    Returns:
        (U, 14) uint8 label classes of the distinct reports, and for each list, (N,) int32 rows of its reports in them.

    Raises:
        UserError: If the labeler does not return label classes.
        UserTypeError: If something is not a string.
    """
    for side in sides:
        check_texts(side, "reports")
    new, rows = distinct(*sides)
    total = sum(map(len, new))
    texts = chain.from_iterable(pick(side, own) for side, own in zip(sides, new, strict=True))
    parts: list[Tensor] = []
    for start in range(0, max(total, 1), _AT_ONCE):
        parts.append(_label(labeler, [list(islice(texts, _AT_ONCE))])[0].to(torch.uint8))
        if total > _AT_ONCE:
            log.info(f"Labeled {min(start + _AT_ONCE, total):,} of {total:,} distinct reports.")
    return torch.cat(parts), [torch.from_numpy(row) for row in rows]


def _label(labeler: Any, sides: list[list[str]]) -> list[Tensor]:
    """Label lists of reports in one call; without reports the labeler is not called."""
    pool = [text for side in sides for text in side]
    labels = run_labeler(labeler, pool) if pool else torch.zeros(0, NUM_CONDITIONS, dtype=torch.int64)
    return list(torch.split(labels, [len(side) for side in sides]))


def run_labeler(labeler: Any, texts: Sequence[str]) -> Tensor:
    """Label reports by any labeler, and check what it returns; an array becomes a tensor.

    Returns:
        (N, 14) integers.

    Raises:
        UserError: If the labeler returns another shape or other values than label classes.
        UserTypeError: If it returns neither a tensor nor an array.
    """
    labels = labeler(texts)
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iufb":
        labels = texts_or_labels(labels, "labels")
    if not isinstance(labels, Tensor):
        kind = "None" if labels is None else f"{type(labels).__module__}.{type(labels).__name__}"
        raise UserTypeError(
            f"Expected the labeler to return a tensor ({len(texts)}, {NUM_CONDITIONS}), but got {kind}."
        )
    if tuple(labels.shape) != (len(texts), NUM_CONDITIONS):
        raise UserError(
            f"Expected the labeler to return ({len(texts)}, {NUM_CONDITIONS}) labels, but got {tuple(labels.shape)}."
        )
    return _check_labels(labels, "labels")


def check_labeler(labeler: Any) -> None:
    """Check that a labeler is None or can be called with reports.

    Raises:
        UserTypeError: If it is a class, or cannot be called.
    """
    if isinstance(labeler, type):
        raise UserTypeError(
            f"Expected argument `labeler` to be an object, but got the class: write {labeler.__name__}()."
        )
    if labeler is not None and not callable(labeler):
        raise UserTypeError(f"Expected argument `labeler` to be a labeler such as RulesLabeler(), but got {labeler!r}.")


def has_text(preds: Tensor | Sequence[str]) -> Tensor | None:
    """(N,) bool: False for reports that are empty or white space alone; None if labels are given."""
    if isinstance(preds, Tensor):
        return None
    return torch.tensor([bool(text.strip()) for text in preds], dtype=torch.bool)


def require_reports(reports: Sized) -> None:
    """Check that there is something to score; a stream may get an empty batch, a function may not.

    Raises:
        UserError: If there are none.
    """
    if not len(reports):
        raise UserError("Expected at least one report in `preds` and `target`, but got none.")


def texts_or_labels(value: Any, name: str) -> Any:
    """Convert arrays to a tensor, and other iterables of strings to a list."""
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


def check_pairs(preds: Sequence[str], target: Sequence[str]) -> None:
    """Check that two sides are equally many reports.

    Raises:
        TypeError: If a side is not a sequence of strings.
        ValueError: If the lengths differ.
    """
    check_texts(preds, "preds")
    check_texts(target, "target")
    if len(preds) != len(target):
        raise UserError(
            f"Expected `preds` and `target` to have the same length, but got {len(preds)} and {len(target)}."
        )


def check_texts(texts: Sequence[str], name: str = "texts") -> None:
    """Check that something is a sequence of strings.

    Raises:
        TypeError: If `texts` is one string, or contains something else than strings; the message gives the index.
    """
    if isinstance(texts, str):
        raise UserTypeError(
            f"Expected argument `{name}` to be a sequence of reports, but got one string: put it in a list."
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserTypeError(f"Expected `{name}[{index}]` to be a string, but got {type(text).__name__}.")
