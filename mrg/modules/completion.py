"""Completions in the think/report format: the targets of supervised training, and the records of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mrg.datamodules.study import Study
from mrg.log import log
from mrg.metrics import CONDITIONS, POSITIVE, THIRTEEN, UNCERTAIN
from mrg.metrics.format import ParsedCompletion


def target_text(report: str, labels: Tensor, think: str) -> str:
    """Completion that supervised training teaches.

    Args:
        report: Reference report.
        labels: (14,) label classes of the report.
        think: `"required"` puts a think section with the findings list before the report; `"absent"` leaves it out.
    """
    body = f"<report>{report}</report>"
    if think == "absent":
        return body
    found = [
        f"{name} (uncertain)" if label == UNCERTAIN else name
        for name, label in zip(THIRTEEN, labels.tolist()[: len(THIRTEEN)], strict=True)
        if label in (POSITIVE, UNCERTAIN)
    ]
    return f"<think>{', '.join(found) or 'No Finding'}</think>{body}"


def predicted(study: Study, text: str, parsed: ParsedCompletion) -> dict[str, str]:
    """Record of a study that need not have a reference, as `predict` writes it."""
    return {"id": study.id, "prediction": parsed.report, "thinking": parsed.thinking, "completion": text}


def tested(
    study: Study, text: str, parsed: ParsedCompletion, labels: Tensor, target_labels: Tensor, truncated: bool
) -> dict[str, Any]:
    """Record of a study with its reference: a line of predictions.jsonl, and the labels, which stay in memory."""
    return {
        "id": study.id,
        "images": [str(v.image) if not hasattr(v.image, "shape") else v.position for v in study.views],
        "positions": [v.position for v in study.views],
        "prediction": parsed.report,
        "thinking": parsed.thinking,
        "completion": text,
        "target": study.report,
        "format": parsed.well_formed,
        "truncated": truncated,
        "findings": [c for c, k in zip(CONDITIONS, labels.tolist(), strict=True) if k in (POSITIVE, UNCERTAIN)],
        "labels": labels,
        "target_labels": target_labels,
    }


def count_unfinished(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Numbers of completions, of truncated ones, and of those without a report."""
    empty = sum(not row["prediction"].strip() for row in rows)
    return {"count": len(rows), "truncated": sum(row["truncated"] for row in rows), "empty": empty}


def warn_unfinished(counts: Mapping[str, int], limit: int) -> None:
    """Log a warning if completions were truncated or have no report."""
    total, truncated, empty = counts["count"], counts["truncated"], counts["empty"]
    if truncated or empty:
        log.warning(
            f"{truncated:,} of {total:,} completions were truncated at model.init_args.max_new_tokens ({limit}), and "
            f"{empty:,} of {total:,} have no report and are scored as empty."
        )
