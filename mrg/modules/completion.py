"""What is written down of a study that a policy wrote for: a line of predictions.jsonl."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mrg.datamodules.study import Study
from mrg.metrics import CONDITIONS, POSITIVE, UNCERTAIN
from mrg.metrics.format import ParsedCompletion


def predicted(study: Study, text: str, parsed: ParsedCompletion) -> dict[str, str]:
    """Where there may be no reference.

    Args:
        study: Whose images were read.
        text: The completion.
        parsed: Its sections.
    """
    return {"id": study.id, "prediction": parsed.report, "thinking": parsed.thinking, "completion": text}


def tested(study: Study, text: str, parsed: ParsedCompletion, labels: Tensor) -> dict[str, Any]:
    """Beside the reference, with what was found.

    Args:
        study: See `predicted`.
        text: See `predicted`.
        parsed: See `predicted`.
        labels: (14,) label classes of the report.
    """
    return {
        "id": study.id,
        "images": [str(v.image) if not hasattr(v.image, "shape") else v.position for v in study.views],
        "positions": [v.position for v in study.views],
        "prediction": parsed.report,
        "thinking": parsed.thinking,
        "completion": text,
        "target": study.report,
        "format": parsed.well_formed,
        "findings": [c for c, k in zip(CONDITIONS, labels.tolist(), strict=True) if k in (POSITIVE, UNCERTAIN)],
    }
