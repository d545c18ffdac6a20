"""What supervision teaches: a reference in the think/report format."""

from __future__ import annotations

from torch import Tensor

from mrg.metrics import POSITIVE, THIRTEEN, UNCERTAIN


def target_text(report: str, labels: Tensor, think: str) -> str:
    """The completion that supervision teaches.

    Args:
        report: The reference.
        labels: (14,) its label classes.
        think: `"required"` puts the findings before the report as a plain list; `"absent"` leaves the section out.
    """
    body = f"<report>{report}</report>"
    if think == "absent":
        return body
    found = [
        f"{name} (uncertain)" if label == UNCERTAIN else name
        for name, label in zip(THIRTEEN, labels.tolist(), strict=False)
        if label in (POSITIVE, UNCERTAIN)
    ]
    return f"<think>{', '.join(found) or 'No Finding'}</think>{body}"
