"""Supervised training at the token level: the paper's baseline, and the start of GRPO.

Choice: every token weighs the same, whatever micro-batch, rank or batch its study is in. A mean of the means of
micro-batches or ranks would weigh a token by the lengths of the other reports in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mrg.datamodules.collate import Batch
from mrg.datamodules.study import Study
from mrg.modules.base import ReportModule
from mrg.modules.policy.fsdp import average_gradients, clip_gradients
from mrg.modules.targets import Lengths, check_targets, encode_targets, warn_truncated


class SFTModule(ReportModule):
    """Maximum likelihood of the reference report in the think/report format; takes the arguments of `ReportModule`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.means["loss"] = MeanMetric()
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

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the targets, summed over tokens, and the number of tokens."""
        ids, mask = self.completions(batch)
        logps = self.policy.logps(self.policy.embed(batch), ids, mask).logps
        return -logps.sum(), mask.sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a micro-batch, whose gradient `configure_gradient_clipping` divides by the tokens of the whole step.

        Logs the mean negative log-likelihood per token of the micro-batches since the last step, on all ranks.
        """
        total, count = self._loss(batch)
        sums = torch.stack([total.detach(), count.to(total.dtype)])
        loss_sum, num_tokens = self.trainer.strategy.reduce(sums, reduce_op="mean").tolist()
        first, tokens, nll = self.window
        self.window = (first or num_tokens, tokens + num_tokens, nll + loss_sum)
        self.log("train/loss", self.window[2] / self.window[1], batch_size=len(batch), prog_bar=True)
        return total / torch.tensor(self.window[0], dtype=total.dtype, device=total.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the held-out loss per token, then write and score reports."""
        total, count = self._loss(batch)
        self._log_mean("val", "loss", total / count, int(count) * batch.counts, batch, prog_bar=True)
        super().validation_step(batch, batch_idx)

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

    def on_after_backward(self) -> None:
        """Average the gradients that a strategy with sharded layers does not average."""
        if self.policy.sharded:
            average_gradients(self.parameters(), self.trainer.world_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums of a step that is not finished, whose gradients are saved as well."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["window"] = self.window

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums of a step that is not finished."""
        super().on_load_checkpoint(checkpoint)
        self.window = checkpoint.get("window", self.window)
