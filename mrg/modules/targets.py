"""Targets of supervised training as tokens, and what is checked about them before training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mrg.errors import UserError
from mrg.log import log
from mrg.modules.policy.policy import Policy

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
                    f"whose tokenizer has it. The target: {texts[row]!r}"
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
