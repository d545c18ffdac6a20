"""Completions in the think/report format: the targets of supervised training, and the records of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.log import log
from mrg.metrics import CONDITIONS, POSITIVE, THIRTEEN, UNCERTAIN
from mrg.metrics.format import ParsedCompletion
from mrg.modules.policy.policy import Policy


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


CHUNK = 1000
"""Number of targets that are encoded at a time."""


class Lengths(NamedTuple):
    """Lengths of targets in tokens.

    Args:
        total: Number of targets.
        truncated: Number of targets that are longer than the limit.
        longest: Tokens of the longest target.
    """

    total: int
    truncated: int
    longest: int


def encode_targets(policy: Policy, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of whole targets with their end tokens.

    Special tokens are never sampled, so that text that looks like one, such as a tag or `<unk>`, is encoded as text.
    """
    encoded = policy.processor.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    return [[*ids, policy.eos_id] for ids in encoded["input_ids"]]


def check_targets(policy: Policy, texts: Sequence[str], names: Iterable[str], limit: int) -> Lengths:
    """Check that the policy can write every target, and measure them.

    Raises:
        UserError: If a target needs a token that is never sampled.
    """
    banned, truncated, longest = set(policy.banned_ids), 0, 0
    for start in range(0, len(texts), CHUNK):
        for row, ids in enumerate(encode_targets(policy, texts[start : start + CHUNK]), start):
            if not banned.isdisjoint(ids):
                name = next(name for index, name in enumerate(names) if index == row)
                token = policy.processor.tokenizer.convert_ids_to_tokens(next(i for i in ids if i in banned))
                raise UserError(
                    f"The target of study {name} needs the token {token!r}, which is never sampled, so that its loss "
                    "is infinite: remove the text that is encoded as this token from the report, or choose a policy "
                    "whose tokenizer has it."
                )
            truncated, longest = truncated + (len(ids) > limit), max(longest, len(ids))
    return Lengths(len(texts), truncated, longest)


def warn_truncated(lengths: Lengths, limit: int) -> None:
    """Log a warning if targets are truncated at `max_new_tokens`."""
    if lengths.truncated:
        share = 100 * lengths.truncated / lengths.total
        log.warning(
            f"{lengths.truncated:,} of {lengths.total:,} training targets ({share:.1f} %) are truncated at "
            f"model.init_args.max_new_tokens ({limit}) and lose their end; the longest has {lengths.longest} tokens. "
            f"Set max_new_tokens to {lengths.longest} to teach whole reports."
        )
