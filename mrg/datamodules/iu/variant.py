"""Which published variant of IU X-Ray a split is, by its counts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

from mrg.datamodules.annotation import SOURCE, SPLITS, AnnotationError
from mrg.errors import UserError

R2GEN_COUNTS = {"train": 2069, "val": 296, "test": 590}

_log = logging.getLogger(__name__)


def describe_variant(splits: Mapping[str, Sequence[object]]) -> str:
    """Say which published variant of the data set the counts of studies belong to."""
    counts = {split: len(splits.get(split, ())) for split in SPLITS}
    text = ", ".join(f"{split} {count}" for split, count in counts.items())
    return f"R2Gen split ({text})" if counts == R2GEN_COUNTS else f"unknown variant with counts {text}"


def check_variant(splits: Mapping[str, Sequence[object]], variant: Literal["r2gen", "any"] = "any") -> None:
    """Compare the counts of studies with those of the R2Gen split, on which published figures rest.

    Args:
        splits: Studies by split.
        variant: `"any"` logs one warning where the counts differ, `"r2gen"` makes a difference an error.

    Raises:
        AnnotationError: If the counts differ and `variant` is `"r2gen"`.
    """
    if variant not in ("r2gen", "any"):
        raise UserError(f"Expected argument `variant` to be 'r2gen' or 'any', but got {variant!r}.")
    if all(len(splits.get(split, ())) == count for split, count in R2GEN_COUNTS.items()):
        return
    expected = ", ".join(f"{split} {count}" for split, count in R2GEN_COUNTS.items())
    found = f"IU X-Ray is an {describe_variant(splits)}, but the R2Gen split has {expected}"
    if variant == "r2gen":
        raise AnnotationError(
            f"{found}; set `data.init_args.root` to the data of {SOURCE}, or `data.init_args.variant` to any."
        )
    _log.warning("%s: results cannot be compared with published ones.", found)
