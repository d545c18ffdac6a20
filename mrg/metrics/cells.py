"""The meaning of a table's cell, the same in all formats: a missing value such as `nan`, or an identifier."""

from __future__ import annotations

import re
from typing import Any

MISSING = frozenset(("", "-", "--", "nan", "-nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"))
"""Texts that mean that there is no value, in any letter case and with any white space around them."""


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, or a text of `MISSING`."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and value != value)


def identifier(value: Any) -> str:
    """An id as text, the same from every format: `12`, `12.0` and `"12.0"` are one id; empty if it is missing.

    Data frames turn whole numbers into floats where one of them is missing.
    """
    if is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())
