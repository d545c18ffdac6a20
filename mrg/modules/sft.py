"""Supervised training at the token level: the paper's baseline, and the start of GRPO.

Choice: every token weighs the same, whatever micro-batch, rank or batch its study is in. A mean of the means of
micro-batches or ranks would weigh a token by the lengths of the other reports in its batch.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mrg.datamodules.collate import Batch
from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.metrics import CEF1
from mrg.metrics.format import parse_completion
from mrg.modules.base import ReportModule
from mrg.modules.checks import check_counts, check_range
from mrg.modules.completion import Lengths, check_targets, encode_targets, warn_truncated
from mrg.modules.optimizer import average_gradients, clip_gradients
from mrg.modules.rollout.sampling import sample


class SupervisedStep(ReportModule):
    """Optimizer steps of automatic optimization: clipped, and skipped if the gradient is not finite."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip gradients to `optimizer.max_grad_norm`, and skip a step without a finite gradient, as GRPO does."""
        norm = clip_gradients(self.parameters(), self.optimizer_settings.max_grad_norm)
        if not self.patience.takes(norm, self.trainer.fit_loop.total_batch_idx):
            # AdamW skips parameters without a gradient: neither weights nor moments change.
            optimizer.zero_grad()

    def on_after_backward(self) -> None:
        """Average the gradients that a strategy with sharded layers does not average."""
        if self.policy.sharded:
            average_gradients(self.parameters(), self.trainer.world_size)


class SFTModule(SupervisedStep):
    """Maximum likelihood of the reference report in the think/report format.

    Args:
        findings_weight: Weight of the loss of a token of the findings list (the think section) relative to one of the
            report. The list is a few tokens of a hundred, and most of what depends on the image.
        val_samples: Completions that are sampled for each validation study, at temperature 1, for
            `val/sampled_ce_f1`: what a policy can find, and so what GRPO can reinforce, which greedy decoding hides.
        **kwargs: Arguments of `ReportModule`.

    Raises:
        UserError: If the weight is not above 0, or is set without a think section, or the number is negative.
    """

    weights_studies = True

    def __init__(self, findings_weight: float = 1.0, val_samples: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("findings_weight", findings_weight, "above 0", findings_weight > 0)
        if findings_weight != 1 and self.think == "absent":
            raise UserError(
                "There is no findings list to weight: set model.init_args.think to required or findings_weight to 1."
            )
        check_counts(0, val_samples=val_samples)
        self.findings_weight, self.val_samples = findings_weight, val_samples
        self.sampled = CEF1(labeler=self.labeler)
        self.means["loss"] = MeanMetric()
        self.means["findings_loss"] = MeanMetric()
        # Of the micro-batches since the last step, as means over ranks: tokens of the first one, by which gradients
        # are divided until all are known; tokens of all; and their negative log-likelihood.
        self.window = (0.0, 0.0, 0.0)

    def setup(self, stage: str) -> None:
        """Load the policy, check the targets, and forget a step that an earlier `fit` did not finish.

        Raises:
            UserError: If the policy cannot write a target.
        """
        super().setup(stage)
        self.window = (0.0, 0.0, 0.0)
        if stage == "fit":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            lengths = self._check_targets(data.train_reports(), data.splits["train"])
            self._check_targets([study.report for study in data.splits["val"]], data.splits["val"])
            warn_truncated(lengths, self.max_new_tokens)

    def _check_targets(self, reports: list[str], studies: Sequence[Study]) -> Lengths:
        names = (study.id for study in studies)
        return check_targets(self.policy, self.target_texts(reports), names, self.max_new_tokens)

    def completions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target completions (B, C), padded on the right, and their mask."""
        # A target that is too long loses its end and the end token: the policy must not learn to stop early.
        rows = [ids[: self.max_new_tokens] for ids in encode_targets(self.policy, self.target_texts(batch.target))]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.policy.pad_id] * (longest - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return ids, torch.arange(longest, device=self.device) < lengths[:, None]

    def _in_list(self, ids: Tensor) -> Tensor:
        """(B, C) bool, True up to the end of the think section, which is found in the text of the tokens."""
        tokenizer = self.policy.processor.tokenizer

        def ends(row: list[int], length: int) -> bool:
            return "</think>" in tokenizer.decode(row[:length])

        lengths = [bisect.bisect_left(range(len(row)), True, key=functools.partial(ends, row)) for row in ids.tolist()]
        return torch.arange(ids.shape[1], device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weighted negative log-likelihood summed over tokens, the sum of weights, and the part of findings lists."""
        ids, mask = self.completions(batch)
        logps = self.policy.logps(self.policy.embed(batch), ids, mask).logps  # (B, C)
        if self.think == "absent" and batch.importance is None:
            return -logps.sum(), mask.sum(), None
        in_list = self._in_list(ids) & mask if self.think != "absent" else torch.zeros_like(mask)
        weights = torch.where(in_list, self.findings_weight, 1.0) * mask
        if batch.importance is not None:
            weights = weights * batch.importance[:, None].to(weights)
        return -(logps * weights).sum(), weights.sum(), -(logps.detach() * in_list).sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a micro-batch, whose gradient `configure_gradient_clipping` divides by the tokens of the whole step.

        Logs the mean negative log-likelihood per token of the micro-batches since the last step, on all ranks.
        """
        total, count, _ = self._losses(batch)
        sums = torch.stack([total.detach(), count.to(total.dtype)])
        loss_sum, num_tokens = self.trainer.strategy.reduce(sums, reduce_op="mean").tolist()
        first, tokens, nll = self.window
        self.window = (first or num_tokens, tokens + num_tokens, nll + loss_sum)
        self.log("train/loss", self.window[2] / self.window[1], batch_size=len(batch), prog_bar=True)
        return total / torch.tensor(self.window[0], dtype=total.dtype, device=total.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the held-out loss per token, then write and score reports."""
        total, count, in_lists = self._losses(batch)
        self._log_mean("val", "loss", total / count, float(count) * batch.counts, batch, prog_bar=True)
        if in_lists is not None:
            self._log_mean("val", "findings_loss", in_lists / len(batch), batch.num_counted, batch)
        super().validation_step(batch, batch_idx)
        if self.val_samples:
            self._score_samples(batch, batch_idx)

    def _score_samples(self, batch: Batch, batch_idx: int) -> None:
        """Log the CE-F1 of sampled reports; the samples depend on the batch and the policy alone."""
        seed = batch_idx * self.trainer.world_size + self.trainer.global_rank
        generator = torch.Generator(self.device).manual_seed(seed)
        prompts = self.policy.embed(batch)
        rollout = sample(self.policy, prompts, self.val_samples, self.max_new_tokens, 1.0, generator, self.decoder)
        if batch.counts:
            reports = [parse_completion(text, self.think).report for text in rollout.texts]
            self.sampled.update(reports, [report for report in batch.target for _ in range(self.val_samples)])
        self.log("val/sampled_ce_f1", self.sampled, batch_size=batch.num_counted)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Divide gradients by the tokens of the step, clip them to `optimizer.max_grad_norm`, and skip a bad step.

        A step is bad if its loss or its gradient is not finite.
        """
        first, tokens, nll = self.window
        self.window = (0.0, 0.0, 0.0)
        # Lightning has divided by the number of micro-batches.
        factor = first * self.trainer.accumulate_grad_batches / tokens
        if factor != 1:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        norm = clip_gradients(self.parameters(), self.optimizer_settings.max_grad_norm)
        if not self.patience.takes(norm, self.trainer.fit_loop.total_batch_idx, nll / tokens):
            # AdamW skips parameters without a gradient: neither weights nor moments change.
            optimizer.zero_grad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums of a step that is not finished, whose gradients are saved as well."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["window"] = self.window

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums of a step that is not finished."""
        super().on_load_checkpoint(checkpoint)
        self.window = checkpoint.get("window", self.window)
