"""The de-identification token of IU X-Ray in texts that a policy is trained to write."""

from __future__ import annotations

import re
from typing import Literal

from mrg.errors import UserError

DEIDENTIFIED = "XXXX"


def clean_target(report: str, deidentified: Literal["keep", "drop_token", "drop_sentence"] = "keep") -> str:
    """Treat the de-identification token `XXXX` in a text that a policy is trained to write.

    For training targets only: a reference from which text is removed is no longer the reference of other papers.

    Args:
        report: A report as written; without the token it is returned unchanged.
        deidentified: `"keep"`; `"drop_token"` removes the words that hold the token and the punctuation then left over;
            `"drop_sentence"` removes the sentences that hold it.

    Returns:
        The target, which is empty where nothing but the token or such sentences was written.
    """
    if deidentified not in ("keep", "drop_token", "drop_sentence"):
        raise UserError(
            f"Expected argument `deidentified` to be 'keep', 'drop_token' or 'drop_sentence', but got {deidentified!r}."
        )
    if deidentified == "keep" or DEIDENTIFIED not in report:
        return report
    if deidentified == "drop_sentence":
        # A full stop also ends a sentence where the space behind it was forgotten, but not behind the number of a list.
        sentences = re.split(r"(?<=[.!?])(?<!\b\d\.)\s+|(?<=[a-zX]\.)(?=[A-Z][a-z])", report.strip())
        return " ".join(sentence for sentence in sentences if DEIDENTIFIED not in sentence)
    text = re.sub(rf"[\w'-]*{DEIDENTIFIED}[\w'-]*", "", report)
    text = re.sub(r"(?<!\w)/|/(?!\w)|\(\W*\)", "", text)
    text = re.sub(r"\s+(?=[.,;:!?)](\D|$))|(?<=\()\s+", "", text)
    text = re.sub(r"[.,;:!?](\s*[.,;:!?])+(?=\s|$)", _strongest, text)
    return " ".join(text.split()).lstrip(".,;:!? ")


def _strongest(run: re.Match[str]) -> str:
    return next((mark for mark in run[0] if mark in ".!?"), run[0][0])
