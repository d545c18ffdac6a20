"""Token-level supervision: the paper's baseline, and the warm start of GRPO."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mrg.datamodules.collate import Batch
from mrg.modules.base import ReportModule
from mrg.modules.settings import check_range
from mrg.modules.sharding import average_gradients, clip_gradients


class SupervisedStep(ReportModule):
    """An optimiser step of automatic optimisation: clipped, and left out where the gradient is not finite."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip to `max_grad_norm`, and leave out a step whose gradient is not finite, as GRPO does."""
        norm = clip_gradients(self.parameters(), self.max_grad_norm)
        if not self.patience.takes(norm, self.trainer.fit_loop.total_batch_idx):
            # AdamW passes over what has no gradient: neither weights nor moments change.
            optimizer.zero_grad()

    def on_after_backward(self) -> None:
        """Average what a strategy of sharded layers leaves to us."""
        if self.writer.sharded:
            average_gradients(self.parameters(), self.trainer.world_size)


class SFTModule(SupervisedStep):
    """Maximum likelihood of the reference report in the think/report format.

    Args:
        findings_weight: Weight of the loss of a token of the findings list (the think section) against one of the
            report. The list is a few tokens of a hundred, and all that depends on the image.
        **kwargs: See `ReportModule`.

    Raises:
        ValueError: If the weight is not above 0, or is set without a think section.
    """

    def __init__(self, findings_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("findings_weight", findings_weight, "above 0", findings_weight > 0)
        if findings_weight != 1 and self.think == "absent":
            raise ValueError(
                "There is no findings list to weight: set model.init_args.think to required or findings_weight to 1."
            )
        self.findings_weight = findings_weight
        self.means["loss"] = MeanMetric()
        self.means["findings_loss"] = MeanMetric()

    def completions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target completions (B, C), padded on the right, and their mask."""
        tokenizer = self.writer.processor.tokenizer
        texts = self.target_texts(batch.target)
        # A target that is too long loses its end, and with it the end token: the policy must not learn to stop early.
        rows = [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], self.writer.eos_id][: self.max_new_tokens]
            for text in texts
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.writer.pad_id] * (longest - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return ids, torch.arange(longest, device=self.device) < lengths[:, None]

    def _listed(self, ids: Tensor) -> Tensor:
        """(B, C) bool, True up to the end of the think section; what it ends with is found in the tokens' texts."""
        tokenizer = self.writer.processor.tokenizer
        rows = []
        for row in ids.tolist():
            text, length = "", 0
            while "</think>" not in text and length < len(row):
                length += 1
                text = tokenizer.decode(row[:length])
            rows.append(length)
        return torch.arange(ids.shape[1], device=ids.device) < torch.tensor(rows, device=ids.device)[:, None]

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Loss per token, and that of the findings list alone where there is one."""
        ids, mask = self.completions(batch)
        logps = self.writer.logps(self.writer.embed(batch), ids, mask).logps
        if self.think == "absent":
            return -logps.sum() / mask.sum(), None
        listed = self._listed(ids) & mask
        weights = torch.where(listed, self.findings_weight, 1.0) * mask
        return -(logps * weights).sum() / weights.sum(), -(logps * listed).sum().detach() / len(ids)

    def _loss(self, batch: Batch) -> Tensor:
        return self._losses(batch)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean negative log-likelihood per completion token."""
        loss = self._loss(batch)
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Held-out likelihood, then reports."""
        loss, findings_loss = self._losses(batch)
        self._log_mean("val", "loss", loss, batch, prog_bar=True)
        if findings_loss is not None:  # nats for the list of a study
            self._log_mean("val", "findings_loss", findings_loss, batch)
        super().validation_step(batch, batch_idx)
