"""The think/report format: parsing, and the score of the valid format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.files import is_missing

TAG = re.compile(r"</?(?:think|report)>")
STRICT = re.compile(r"(?:<think>(.*?)</think>\s*)?<report>(.*?)</report>", re.DOTALL)


class ParsedCompletion(NamedTuple):
    """Sections of a completion; `report` is empty if it is missing, see `is_missing`, or its section is ambiguous."""

    thinking: str
    report: str
    well_formed: bool


def parse_completion(text: str, think: str = "required") -> ParsedCompletion:
    """Split a completion into its sections.

    The valid format is exactly one `<think>…</think>`, then exactly one `<report>…</report>`, both non-empty, and
    nothing else but white space.

    Args:
        text: The completion.
        think: `"required"`, or `"absent"` if the policy writes the report alone.

    Raises:
        UserError: If `think` is unknown.
    """
    if think not in ("required", "absent"):
        raise UserError(f"Expected argument `think` to be 'required' or 'absent', but got {think!r}.")
    tags = TAG.findall(text)
    if tags.count("<report>") != 1 or tags.count("</report>") != 1:
        return ParsedCompletion("", "", False)
    match = STRICT.fullmatch(text.strip())
    if match and tags.count("<think>") <= 1 and len(tags) in (2, 4):
        thinking, report = (match[1] or "").strip(), _written(TAG.sub(" ", match[2]))
        if report and (bool(thinking) if think == "required" else len(tags) == 2):
            return ParsedCompletion(thinking, report, True)
        return ParsedCompletion(thinking, report, False)
    section = re.search(r"<report>(.*?)</report>", text, re.DOTALL)
    if section is None:
        return ParsedCompletion("", "", False)
    return ParsedCompletion("", _written(TAG.sub(" ", section[1])), False)


def _written(report: str) -> str:
    return "" if is_missing(report) else report.strip()


def format_score(texts: Sequence[str], think: str = "required") -> Tensor:
    """Score completions: 1 for the valid format, otherwise 0; (N,) float64."""
    return torch.tensor([float(parse_completion(text, think).well_formed) for text in texts], dtype=torch.float64)
