"""Words that spreadsheets and data frames write for a missing value, such as `nan`: they are not reports."""

from __future__ import annotations

from typing import Any

MISSING = frozenset(("", "-", "--", "nan", "-nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"))
"""Texts that mean that there is no value, in any letter case and with any white space around them."""


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, or a text of `MISSING`."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and value != value)
