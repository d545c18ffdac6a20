"""Credit by finding: a completion's advantage, spread over its tokens by the words that state its findings.

GRPO gives every token of a completion the same advantage A: the words of a correct finding are punished for a
hallucination elsewhere in the report. The labeler knows which words state which label, and the reward is a function of
labels, so that what a label is worth can be computed exactly, without another call of the labeler:

    d_c = (R(y) - R(y without label c)) / s

y are the labels of the report, R the weighted sum of the parts of the reward that depend on labels, and s what the
rewards of the group are divided by to become advantages. A token in the words that state c, the name of the finding and
the cue that negates or hedges it, has the advantage d_c; in the words of several labels, the sum of theirs; d_c is
limited to the largest advantage of the group. All other tokens of the completion share the remainder equally, so that
the sum over tokens is L A as before, with L the number of tokens. If no token remains, it is shared by all.

A completion without evidence keeps A at every token, and a dead group stays at exactly 0. The think section, whose
words the labeler does not read, belongs to the remainder, and so do the format and custom scorers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.conditions import BLANK, CONDITIONS
from mrg.metrics.format import parse_completion
from mrg.modules.rl.reward import Reward, Rewards

FINDINGS = 13
Span = tuple[int, int]


def check_credit(labeler: Any, reward: Reward) -> None:
    """Check that the labeler has evidence, and that the reward depends on labels.

    Raises:
        UserError: If not.
    """
    if not hasattr(labeler, "evidence"):
        name = getattr(labeler, "name", type(labeler).__name__)
        raise UserError(
            f"model.init_args.loss.credit finding requires a labeler with evidence(text), such as RulesLabeler; {name} "
            "has none: choose another labeler, or credit completion."
        )
    own = {*reward.metrics, *reward.corpus, *reward.normal_bias}
    if not any(reward.weights[name] for name in own):
        raise UserError(
            "model.init_args.loss.credit finding requires a part of the reward that depends on labels, such as "
            "mccs_weight: all of theirs are 0."
        )


def label_values(reward: Reward, preds: Tensor, target: Tensor) -> Tensor:
    """What each label of N reports is worth: (N, 13) float64, 0 for labels that are blank.

    Args:
        reward: The reward.
        preds: (N, 14) label classes of the reports.
        target: (N, 14) label classes of their references.
    """
    preds, target = preds.cpu(), target.cpu()
    values = torch.zeros(len(preds), FINDINGS, dtype=torch.float64)
    rows, columns = (preds[:, :FINDINGS] != BLANK).nonzero(as_tuple=True)
    if len(rows):
        without = preds[rows].clone()
        without[torch.arange(len(rows)), columns] = BLANK
        values[rows, columns] = _total(reward, preds, target)[rows] - _total(reward, without, target[rows])
    return values


def _total(reward: Reward, preds: Tensor, target: Tensor) -> Tensor:
    parts = reward.label_parts(preds, target)
    return torch.stack([reward.weights[name] * part.double().cpu() for name, part in parts.items()]).sum(0)


def evidence_spans(labeler: Any, completion: str, think: str) -> list[tuple[int, Span]]:
    """Column of a condition and character span in the completion, for each name of a finding and each cue.

    Args:
        labeler: Labeler with `evidence`.
        completion: A completion.
        think: Valid format, `"required"` or `"absent"`.
    """
    report = parse_completion(completion, think).report
    shift = completion.find(report, completion.find("<report>")) if report else -1
    if shift < 0:  # no report, or one with tags inside
        return []
    found = set()
    for part in labeler.evidence(report):
        column = CONDITIONS.index(part.condition)
        if column >= FINDINGS:
            continue
        found.add((column, (shift + part.mention_start, shift + part.mention_end)))
        cue = report.rfind(part.cue, part.start, part.mention_end)
        if cue < 0:
            cue = report.find(part.cue, part.mention_end, part.end)
        if part.cue and cue >= 0:
            found.add((column, (shift + cue, shift + cue + len(part.cue))))
    return sorted(found)


def token_spans(tokenizer: Any, ids: Sequence[int]) -> list[Span]:
    """Characters of each token in the stripped text of a completion.

    Computed by decoding every beginning of the completion: encoding the text again might give other tokens. A token
    that completes a character begins where the character does; an end token is empty.
    """
    texts = [tokenizer.decode(ids[:stop], skip_special_tokens=True) for stop in range(len(ids) + 1)]
    shift = len(texts[-1]) - len(texts[-1].lstrip())
    whole = texts[-1]
    ends: list[int] = []
    for text in texts:
        same = len(text) if whole.startswith(text) else len(text.rstrip("\ufffd"))  # part of a character
        ends.append(max(same - shift, ends[-1] if ends else 0, 0))
    return list(pairwise(ends))


def token_values(
    spans: Sequence[Span], evidence: Sequence[tuple[int, Span]], values: Tensor
) -> tuple[list[float], list[bool]]:
    """Sum of the values of the labels that each token states, and whether it states any.

    Args:
        spans: Characters of the tokens.
        evidence: Columns and characters of the evidence.
        values: (13,) values of the labels.
    """
    sums, covered = [], []
    for start, stop in spans:
        columns = {column for column, (first, last) in evidence if first < stop and start < last}
        sums.append(sum(float(values[column]) for column in columns))
        covered.append(bool(columns))
    return sums, covered


def spread(advantages: Tensor, values: Tensor, covered: Tensor, mask: Tensor) -> Tensor:
    """Advantages of tokens, whose sum over a completion is that of its advantage.

    Args:
        advantages: (N,) advantages of the completions.
        values: (N, C) values of the tokens that are covered.
        covered: (N, C) bool, True at tokens with evidence.
        mask: (N, C) bool, True at tokens.

    Returns:
        (N, C) in the type of `advantages`, 0 where the mask is False.
    """
    covered = covered & mask
    length, rest = mask.sum(1), (mask & ~covered).sum(1)
    own = values.where(covered, 0.0).to(advantages.dtype)
    remainder = length * advantages - own.sum(1)
    share = remainder / torch.where(rest > 0, rest, length.clamp(min=1))
    everywhere = (rest == 0)[:, None]
    return torch.where(covered, own + share[:, None] * everywhere, share[:, None]).where(mask, 0.0)


def finding_credit(
    reward: Reward,
    rewards: Rewards,
    advantages: Tensor,
    group_size: int,
    texts: Sequence[str],
    completions: Sequence[Sequence[int]],
    width: int,
    tokenizer: Any,
) -> tuple[Tensor, Tensor]:
    """Advantages of the tokens of N completions, and which of them have evidence.

    Args:
        reward: The reward, whose labeler has `evidence`.
        rewards: Rewards of the completions.
        advantages: (N,) advantages of the completions.
        group_size: Completions per study.
        texts: N texts of the completions.
        completions: N lists of token ids, without padding.
        width: C, at least the length of the longest completion.
        tokenizer: The policy's tokenizer.

    Returns:
        (N, C) advantages on the device of `advantages`, and (N, C) bool on the CPU.
    """
    own = advantages.double().cpu()
    limit = own.view(-1, group_size).abs().amax(1).repeat_interleave(group_size)  # (N,) the group's largest
    worth = label_values(reward, *rewards.labels) / divisors(rewards, own, group_size)[:, None]
    worth = worth.clamp(-limit[:, None], limit[:, None])
    values = torch.zeros(len(texts), width, dtype=torch.float64)
    covered, mask = torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values, dtype=torch.bool)
    for row, ids in enumerate(completions):
        mask[row, : len(ids)] = True
        evidence = evidence_spans(reward.labeler, texts[row], reward.think) if limit[row] else []
        if evidence:
            sums, has = token_values(token_spans(tokenizer, list(ids)), evidence, worth[row])
            values[row, : len(ids)], covered[row, : len(ids)] = torch.tensor(sums).double(), torch.tensor(has)
    return spread(own, values, covered, mask).to(advantages), covered


def divisors(rewards: Rewards, advantages: Tensor, group_size: int) -> Tensor:
    """(N,) what the centred rewards of a group were divided by to become its advantages; infinite in a dead group.

    Read off the completion with the largest advantage, so that it is right for every scale of the advantages.
    """
    here = torch.ones_like(rewards.total, dtype=torch.bool) if rewards.scored is None else rewards.scored
    groups, present = rewards.total.double().view(-1, group_size), here.view(-1, group_size)
    means = groups.where(present, 0.0).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    grouped = advantages.view(-1, group_size)
    row = grouped.abs().argmax(1, keepdim=True)
    largest, centred = grouped.gather(1, row), (groups - means).gather(1, row)
    found = torch.where(largest != 0, centred / largest.where(largest != 0, 1.0), torch.inf)
    return found.expand_as(grouped).flatten()
