"""Choice of one of several sampled reports without a reference: minimum Bayes risk under a clinical metric.

The samples of a study stand in for its unknown reference. The report with the highest mean score against the other
samples minimizes the expected loss of that score under the policy (Kumar and Byrne, 2004; Eikema and Aziz, 2022).

| choice | score of a sample |
|---|---|
| `mccs` | mean MCCS against the other samples |
| `ce_f1` | mean F1 of the findings against the other samples; 1 if neither states a finding |
| `medoid` | mean share of the 14 label classes that equal those of the other samples |
| `likelihood` | log-probability of the completion |

Samples with equal scores are ordered by log-probability. All functions take labels, so that a report is labeled once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.ce import CEF1
from mrg.metrics.conditions import THIRTEEN, stated
from mrg.metrics.mccs import mccs

CHOICES = ("mccs", "ce_f1", "likelihood", "medoid")


def agreement(labels: Tensor, choice: str, margin: float = 0.5, written: Tensor | None = None) -> Tensor:
    """Mean score of each sample against the other samples of its study.

    Args:
        labels: (B, N, 14) label classes of N samples per study.
        choice: `"mccs"`, `"ce_f1"` or `"medoid"`.
        margin: Margin of MCCS.
        written: (B, N) bool, False for samples without a report; they agree with nothing.

    Returns:
        (B, N) float64 in [0, 1].

    Raises:
        UserError: If there are fewer than two samples per study, or the choice is unknown.
    """
    studies, samples = labels.shape[:2]
    if samples < 2:
        raise UserError(f"Expected at least 2 samples per study to compare, but got {samples}.")
    if choice not in CHOICES or choice == "likelihood":
        raise UserError(f"Expected argument `choice` to be 'mccs', 'ce_f1' or 'medoid', but got {choice!r}.")
    pairs = (studies, samples, samples, labels.shape[2])
    preds, target = (side.expand(pairs).reshape(-1, labels.shape[2]) for side in (labels[:, :, None], labels[:, None]))
    if choice == "mccs":
        scores = mccs(preds, target, margin, reduction="none")
    elif choice == "ce_f1":
        scores = CEF1(average="example", zero_division=1).scores(preds, target)
    else:
        scores = (preds == target).double().mean(1)
    scores = scores.view(pairs[:3])
    if written is not None:
        scores = scores * (written[:, :, None] & written[:, None])
    others = ~torch.eye(samples, dtype=torch.bool, device=labels.device)
    return (scores * others).sum(2) / (samples - 1)


def best_sample(scores: Tensor, logps: Tensor) -> Tensor:
    """Index (B,) of the sample with the highest score; of equal ones, that with the highest log-probability.

    Args:
        scores: (B, N) scores.
        logps: (B, N) log-probabilities of the completions.
    """
    best = scores >= scores.amax(1, keepdim=True) - 1e-9
    return logps.double().masked_fill(~best, -torch.inf).argmax(1)


def choose_samples(
    labels: Tensor, logps: Tensor, choice: str, margin: float = 0.5, written: Tensor | None = None
) -> Tensor:
    """Index (B,) of the sample that is chosen for each study.

    Args:
        labels: (B, N, 14) label classes.
        logps: (B, N) log-probabilities of the completions.
        choice: One of `CHOICES`.
        margin: Margin of MCCS.
        written: (B, N) bool, False for samples without a report.
    """
    scores = logps if choice == "likelihood" else agreement(labels, choice, margin, written)
    if choice == "likelihood" and written is not None:
        scores = scores.masked_fill(~written, -torch.inf)
    return best_sample(scores, logps)


def match_findings(labels: Tensor, logps: Tensor, wanted: Tensor, written: Tensor | None = None) -> Tensor:
    """Index (B,) of the sample whose findings differ from the wanted ones in the fewest of the 13 conditions.

    Args:
        labels: (B, N, 14) label classes.
        logps: (B, N) log-probabilities of the completions, for samples that differ in equally many.
        wanted: (B, 13) bool, the findings to state.
        written: (B, N) bool, False for samples without a report; they come last.
    """
    equal = (stated(labels)[:, :, : len(THIRTEEN)] == wanted[:, None]).sum(2).double()
    return best_sample(equal if written is None else equal.masked_fill(~written, -1.0), logps)


def finding_shares(labels: Tensor) -> Tensor:
    """Share (B, 13) of the samples that state a finding, as certain or as possible; labels are (B, N, 14)."""
    return stated(labels)[:, :, : len(THIRTEEN)].double().mean(1)
