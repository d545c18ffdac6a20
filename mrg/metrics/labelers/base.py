"""The labeler interface: a callable from report texts to label classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from mrg.errors import UserError, UserTypeError


class Labeler(ABC):
    """Assigns each report one label class per condition.

    A metric accepts any callable of this form: the rule-based labeler, a CheXbert checkpoint, or your own. A labeler
    that is set in a configuration (`model.init_args.labeler.class_path`) must derive from this class, because
    jsonargparse treats a callable protocol as a factory of its return value. Results carry its `name`.
    """

    name: str

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports.

        Args:
            texts: N reports; the row of an empty one is blank.

        Returns:
            int64 (N, 14) on the CPU or on the labeler's device, columns in the order of
            `mrg.metrics.conditions.CONDITIONS`, values BLANK 0, POSITIVE 1, NEGATIVE 2, UNCERTAIN 3. Equal texts get
            equal rows, whatever else is in the call.
        """


def check_pairs(preds: Sequence[str], target: Sequence[str]) -> None:
    """Check that both sides are lists of reports of equal length.

    Raises:
        UserTypeError: See `check_texts`.
        UserError: If the lengths differ.
    """
    check_texts(preds, "preds")
    check_texts(target, "target")
    if len(preds) != len(target):
        raise UserError(
            f"Expected `preds` and `target` to have the same length, but got {len(preds)} and {len(target)}."
        )


def check_texts(texts: Sequence[str], name: str = "texts") -> None:
    """Check that the input of a labeler is a sequence of strings.

    Raises:
        UserTypeError: If `texts` is one string, or holds something that is not a string (the message says where).
    """
    if isinstance(texts, str):
        raise UserTypeError(
            f"Expected argument `{name}` to be a sequence of reports, but got one string: put it in a list."
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserTypeError(f"Expected `{name}[{index}]` to be a string, but got {type(text).__name__}.")
