"""The interface of labelers: a callable from report texts to label classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from mrg.errors import UserError, UserTypeError


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
