"""Supervised training at the token level: the paper's baseline, and the start of GRPO."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.modules.base import ReportModule
from mrg.modules.policy.fsdp import average_gradients, clip_gradients
from mrg.modules.settings import check_range


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
        **kwargs: Arguments of `ReportModule`.

    Raises:
        UserError: If the weight is not above 0, or is set without a think section.
    """

    def __init__(self, findings_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("findings_weight", findings_weight, "above 0", findings_weight > 0)
        if findings_weight != 1 and self.think == "absent":
            raise UserError(
                "There is no findings list to weight: set model.init_args.think to required or findings_weight to 1."
            )
        self.findings_weight = findings_weight
        self.means["loss"] = MeanMetric()
        self.means["findings_loss"] = MeanMetric()

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

    def _in_list(self, ids: Tensor) -> Tensor:
        """(B, C) bool, True up to the end of the think section, which is found in the text of the tokens."""
        tokenizer = self.policy.processor.tokenizer
        lengths = []
        for row in ids.tolist():
            length = 0
            while length < len(row) and "</think>" not in tokenizer.decode(row[:length]):
                length += 1
            lengths.append(length)
        return torch.arange(ids.shape[1], device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Loss per token, and the loss of the findings list of a study, if there are lists."""
        ids, mask = self.completions(batch)
        logps = self.policy.logps(self.policy.embed(batch), ids, mask).logps  # (B, C)
        if self.think == "absent":
            return -logps.sum() / mask.sum(), None
        in_list = self._in_list(ids) & mask
        weights = torch.where(in_list, self.findings_weight, 1.0) * mask
        return -(logps * weights).sum() / weights.sum(), -(logps.detach() * in_list).sum() / len(ids)

    def _loss(self, batch: Batch) -> Tensor:
        return self._losses(batch)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean negative log-likelihood per completion token."""
        loss = self._loss(batch)
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the held-out loss, then write and score reports."""
        loss, findings_loss = self._losses(batch)
        self._log_mean("val", "loss", loss, batch, prog_bar=True)
        if findings_loss is not None:
            self._log_mean("val", "findings_loss", findings_loss, batch)
        super().validation_step(batch, batch_idx)
