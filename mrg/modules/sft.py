"""Supervised training at the token level: the paper's baseline, and the start of GRPO."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mrg.datamodules.collate import Batch
from mrg.modules.base import ReportModule
from mrg.modules.policy.fsdp import average_gradients, clip_gradients


class SFTModule(ReportModule):
    """Maximum likelihood of the reference report in the think/report format; takes the arguments of `ReportModule`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.means["loss"] = MeanMetric()

    def completions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target completions (B, C), padded on the right, and their mask."""
        tokenizer = self.policy.processor.tokenizer
        texts = self.target_texts(batch.target)
        # A target that is too long loses its end and the end token: the policy must not learn to stop early.
        rows = [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], self.policy.eos_id][: self.max_new_tokens]
            for text in texts
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.policy.pad_id] * (longest - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return ids, torch.arange(longest, device=self.device) < lengths[:, None]

    def _loss(self, batch: Batch) -> Tensor:
        ids, mask = self.completions(batch)
        logps = self.policy.logps(self.policy.embed(batch), ids, mask).logps
        return -logps.sum() / mask.sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean negative log-likelihood per completion token."""
        loss = self._loss(batch)
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the held-out loss, then write and score reports."""
        self._log_mean("val", "loss", self._loss(batch), batch, prog_bar=True)
        super().validation_step(batch, batch_idx)

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
