"""What every labeler is: a callable from report texts to label classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from mrg.errors import UserError, UserTypeError


class Labeler(ABC):
    """Reads reports and says, for each of the 14 conditions, what the text states about it.

    A metric takes any callable of this form: the rule-based labeler, a CheXbert checkpoint, or one of your own. To be
    named in a configuration (`model.init_args.labeler.class_path`) it must derive from this class, because jsonargparse
    takes a callable protocol for a factory of what it returns. `name` stands in results.
    """

    name: str

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports.

        Args:
            texts: N reports; an empty one is allowed and mentions nothing.

        Returns:
            int64 (N, 14) on the CPU or on the labeler's device, columns in the order of
            `mrg.metrics.conditions.CONDITIONS`, values BLANK 0, POSITIVE 1, NEGATIVE 2, UNCERTAIN 3. Equal texts get
            equal rows, whatever else is in the call.
        """


def check_pairs(preds: Sequence[str], target: Sequence[str]) -> None:
    """Raise where two sides are not as many reports.

    Raises:
        TypeError: See `check_texts`.
        ValueError: If the lengths differ.
    """
    check_texts(preds, "preds")
    check_texts(target, "target")
    if len(preds) != len(target):
        raise UserError(
            f"Expected `preds` and `target` to have the same length, but got {len(preds)} and {len(target)}."
        )


def check_texts(texts: Sequence[str], name: str = "texts") -> None:
    """Raise where a labeler would otherwise fail late or label something that is not a report.

    Raises:
        TypeError: If `texts` is one string, or holds something that is not a string (the message says where).
    """
    if isinstance(texts, str):
        raise UserTypeError(
            f"Expected argument `{name}` to be a sequence of reports, but got one string: put it in a list."
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserTypeError(f"Expected `{name}[{index}]` to be a string, but got {type(text).__name__}.")
