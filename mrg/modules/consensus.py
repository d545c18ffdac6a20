"""Reports chosen from samples of the policy, outside of training.

Choices: the samples of a study are decoded as a group, so that its prompt is read once for all of them; the greedy
report is decoded as well, because results show both. Samples depend on the seed and the studies of a batch alone.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.calibration import parse_operating_point
from mrg.metrics.conditions import NUM_CONDITIONS, THIRTEEN
from mrg.metrics.consensus import CHOICES, agreement, choose_samples, finding_shares, match_findings
from mrg.metrics.format import parse_completion
from mrg.metrics.labels import Labeler, label_together
from mrg.metrics.uncertainty import as_digits
from mrg.modules.policy.policy import Policy
from mrg.modules.prefix.packing import Prompts
from mrg.modules.rollout.sampling import Rollout, sample
from mrg.modules.rollout.static_cache import StaticDecoder


class Consensus:
    """Samples reports, chooses one per study, and counts what that costs.

    Args:
        num_samples: Number of samples per study, at least 2.
        choose: One of `mrg.metrics.consensus.CHOICES`.
        temperature: Sampling temperature, > 0.
        seed: Seed of the samples.
        operating_point: `f1`, `precision=P` or `recall=R`, for a choice by thresholds; empty for `choose`.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        num_samples: int,
        choose: str = "mccs",
        temperature: float = 1.0,
        seed: int = 0,
        operating_point: str = "",
    ) -> None:
        if num_samples < 2:
            raise UserError(
                f"Expected --samples to be at least 2 for --choose and --operating_point, but got {num_samples}: with "
                "one sample there is nothing to choose from. Leave these options out for greedy decoding."
            )
        if choose not in CHOICES:
            raise UserError(f"Expected --choose to be {', '.join(CHOICES)}, but got {choose!r}.")
        if temperature <= 0:
            raise UserError(
                f"Expected --sample_temperature to be above 0, but got {temperature:g}: all {num_samples} samples "
                "would be the greedy report."
            )
        if operating_point:
            parse_operating_point(operating_point)
        self.num_samples, self.choose, self.temperature, self.seed = num_samples, choose, temperature, seed
        self.operating_point = operating_point
        self.labeler: Labeler | None = None
        self.think, self.margin = "required", 0.5
        self.thresholds: Tensor | None = None
        """(13,) thresholds on the shares of samples, for `operating_point`."""
        self.calibrated = ""
        """Digest of the file of the calibration, empty if there is none."""
        self.compared: dict[str, Tensor] = {}
        """Operating point -> (13,) thresholds, whose samples are in `choices` as well."""
        self.notes: dict[str, dict[str, Any]] = {}
        """Study id -> what its samples say, see `write`."""
        self.cost = {"studies": 0, "seconds": 0.0, "tokens": 0, "greedy_seconds": 0.0, "greedy_tokens": 0}

    def describe(self) -> str:
        """Describe in one line what the chosen reports depend on."""
        how = self.operating_point or self.choose
        text = f"{self.num_samples} at temperature {self.temperature:g} with seed {self.seed}, chosen by {how}"
        return f"{text}, calibration {self.calibrated}" if self.calibrated else text

    def reset(self) -> None:
        """Forget all samples and costs."""
        self.notes, self.cost = {}, dict.fromkeys(self.cost, 0)

    @torch.no_grad()
    def write(
        self,
        policy: Policy,
        prompts: Prompts,
        names: Sequence[str],
        max_new_tokens: int,
        decoder: StaticDecoder | None = None,
    ) -> Rollout:
        """Sample reports for B studies and choose one for each.

        `notes` has for each study: `greedy`, the greedy report; `shares`, condition -> share of the samples that state
        it; `agreement`, the mean MCCS of the chosen report against the other samples; `choices`, choice or operating
        point -> index of the sample; `sample_labels` and `greedy_labels`, the 14 label classes as digits, empty without
        a report.

        Args:
            policy: The policy.
            prompts: B prompts.
            names: B study ids.
            max_new_tokens: Largest number of tokens of a completion.
            decoder: Decoder with a static KV cache.

        Returns:
            The B chosen completions.
        """
        started = time.perf_counter()
        greedy = sample(policy, prompts, 1, max_new_tokens, temperature=0.0, decoder=decoder)
        between = time.perf_counter()
        seed = zlib.crc32("\n".join(map(str, (self.seed, *names))).encode())
        generator = torch.Generator(prompts.embeds.device).manual_seed(seed)
        rollout = sample(policy, prompts, self.num_samples, max_new_tokens, self.temperature, generator, decoder)
        done = time.perf_counter()
        for name, value in (
            ("studies", len(names)),
            ("seconds", done - between),
            ("tokens", int(rollout.completion_mask.sum())),
            ("greedy_seconds", between - started),
            ("greedy_tokens", int(greedy.completion_mask.sum())),
        ):
            self.cost[name] += value
        return self._choose(names, greedy, rollout)

    def _choose(self, names: Sequence[str], greedy: Rollout, rollout: Rollout) -> Rollout:
        assert self.labeler is not None
        num, shape = len(rollout.texts), (len(names), self.num_samples)
        reports = [parse_completion(text, self.think).report for text in (*rollout.texts, *greedy.texts)]
        known = label_together(self.labeler, reports)[0].cpu()
        has_report = torch.tensor([bool(report) for report in reports])
        digits = as_digits(known, has_report)
        labels, written = known[:num].view(*shape, NUM_CONDITIONS), has_report[:num].view(shape)
        logps = rollout.old_logps.double().sum(1).cpu().view(shape)
        choices = {name: choose_samples(labels, logps, name, self.margin, written) for name in CHOICES}
        shares = finding_shares(labels)
        chosen = choices[self.choose]
        if self.thresholds is not None:
            chosen = match_findings(labels, logps, shares >= self.thresholds, written)
        for point, thresholds in self.compared.items():
            choices[point] = match_findings(labels, logps, shares >= thresholds, written)
        agree = agreement(labels, "mccs", self.margin, written).gather(1, chosen[:, None])[:, 0]
        for i, name in enumerate(names):
            self.notes[name] = {
                "greedy": reports[num + i],
                "shares": dict(zip(THIRTEEN, shares[i].tolist(), strict=True)),
                "agreement": float(agree[i]),
                "choices": {name: int(index[i]) for name, index in choices.items()},
                "sample_labels": digits[i * self.num_samples : (i + 1) * self.num_samples],
                "greedy_labels": digits[num + i],
            }
        return rollout.take([i * self.num_samples + place for i, place in enumerate(chosen.tolist())])
