"""Train a policy's vision tower on the findings of the training reports, before the language model reads from it.

A report says little about an image in many words: of the likelihood of a normal-looking report, hardly anything depends
on what is seen. The labels of the reports are all about it. The tower and its projector learn them under a light head,
which is left behind; what stays is a policy folder from which SFT and GRPO start, with the tower frozen.

Choices: the head averages the normalized tokens of all views of a study and is linear, so that the evidence is where a
language model's attention finds it. An uncertain finding counts as a finding. Thresholds are chosen on the validation
split: one for all conditions, which is the form of the micro-F1-optimal decision, and one for each, which is that of
macro F1. `test` writes the names of the conditions above the threshold as a report, so that the head is scored like any
policy: the ceiling of what was seen.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.metrics import CONDITIONS, THIRTEEN
from mrg.metrics.calibration import best_threshold
from mrg.metrics.conditions import stated
from mrg.metrics.labels import run_labeler
from mrg.modules.checks import check_choice
from mrg.modules.policy.precision import float32_depthwise
from mrg.modules.policy.ranks import gather
from mrg.modules.sft import SupervisedStep

NOTHING = "No acute cardiopulmonary abnormality."
"""Report of a study in which no condition is above its threshold."""


class FindingsHead(nn.Module):
    """Image tokens -> one logit for each of the 13 conditions.

    Args:
        width: Width of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, len(THIRTEEN))

    def forward(self, tokens: Tensor, counts: list[int]) -> Tensor:
        """Logits (B, 13).

        Args:
            tokens: (sum of counts, D) image tokens of B studies.
            counts: Tokens of each study.
        """
        normed = self.norm(tokens)
        logits: Tensor = self.linear(torch.stack([part.mean(0) for part in normed.split(counts)]))
        return logits


class FindingsModule(SupervisedStep):
    """Trains the vision tower and its projector; the language model stays as it is.

    Args:
        thresholds: `"one"` for all conditions, or `"each"`: what `test` writes reports by.
        frozen: Modules of the model that stay as they are, as the beginnings of their names, such as
            `vision_tower.encoder.blocks.0.`: the first layers of a pretrained tower cost most of the time and learn
            least.
        **kwargs: Arguments of `ReportModule`.

    Raises:
        UserError: If there is an adapter or a vision cache, no training report states a finding, or a name of `frozen`
            begins no module's name or freezes all.
    """

    thresholds: Tensor

    def __init__(
        self, thresholds: Literal["one", "each"] = "one", frozen: list[str] | None = None, **kwargs: Any
    ) -> None:
        check_choice("thresholds", thresholds, ("one", "each"))
        super().__init__(train_vision=True, **kwargs)
        if self.lora is not None:
            raise UserError("The language model is not trained on findings: set model.init_args.lora to null.")
        self.kind = thresholds
        self.frozen = tuple(frozen or ())
        self.register_buffer("thresholds", torch.full((len(THIRTEEN),), 0.5), persistent=False)
        self.head: FindingsHead | None = None
        self.means["loss"] = MeanMetric()
        self.logits: list[tuple[list[str], Tensor, Tensor]] = []

    def setup(self, stage: str) -> None:
        """Load the policy, freeze its language model and add the head."""
        super().setup(stage)
        if self.head is None:
            self._freeze()
            self.policy.adapts_norms = True
            float32_depthwise(self.policy.base.model)
            self.policy.train()
            self.head = FindingsHead(self.policy.base.config.text_config.hidden_size)
        if stage == "fit":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            if not bool(self._found(data.train_reports()).any()):
                raise UserError("No training report states a finding: there is nothing to train the vision tower on.")

    def _freeze(self) -> None:
        """Train the vision modules alone, without those of `frozen`."""
        vision = tuple(f"{name}." for name in self.policy.family.vision)
        names = {name: p for name, p in self.policy.base.model.named_parameters() if name.startswith(vision)}
        for prefix in self.frozen:
            if not any(name.startswith(prefix) for name in names):
                raise UserError(
                    f"Expected model.init_args.frozen to name modules of the vision tower, such as "
                    f"{next(iter(names)).rpartition('.')[0]!r}, but no name begins with {prefix!r}."
                )
        self.policy.base.requires_grad_(False)
        trained = [parameter for name, parameter in names.items() if not name.startswith(self.frozen)]
        if not trained:
            raise UserError("model.init_args.frozen freezes the whole vision tower: there is nothing to train.")
        for parameter in trained:
            parameter.requires_grad_(True)

    def _found(self, reports: list[str]) -> Tensor:
        """(B, 13) bool, True where a report states a finding."""
        labels = run_labeler(self.labeler, reports)[:, : len(THIRTEEN)]
        return stated(labels)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, 13) of the conditions."""
        assert self.head is not None, "setup() makes the head"
        tokens, _ = self.policy.family.images(self.policy.base.model, batch)
        counts = (batch.prompt_ids == self.policy.base.config.image_token_id).sum(1).tolist()
        logits: Tensor = self.head(tokens.float(), counts)
        return logits.float()

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        found = self._found(batch.target).to(logits)
        return F.binary_cross_entropy_with_logits(logits, found)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean binary cross-entropy."""
        loss = self._loss(self(batch), batch)
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the logits of an earlier validation."""
        super().on_validation_epoch_start()
        self.logits = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Held-out cross-entropy; the rest is computed once all studies are there."""
        logits = self(batch)
        self._log_mean("val", "loss", self._loss(logits, batch), batch.num_counted, batch, prog_bar=True)
        self.num_scored += batch.num_counted
        if batch.counts:
            self.logits.append((batch.study_id, logits.cpu(), self._found(batch.target).cpu()))

    def on_validation_epoch_end(self) -> None:
        """Choose thresholds and log what the head sees."""
        super().on_validation_epoch_end()
        parts = [part for rank in gather(self.logits, self.trainer.world_size) for part in rank]
        probabilities = torch.cat([logits for _, logits, _ in parts]).sigmoid()
        found = torch.cat([rows for _, _, rows in parts])
        one, each = (
            best_threshold(probabilities.flatten(), found.flatten()),
            [best_threshold(*pair) for pair in zip(probabilities.T, found.T, strict=True)],
        )
        chosen = torch.tensor([one[0]] * len(THIRTEEN) if self.kind == "one" else [t for t, _ in each])
        self.thresholds.copy_(chosen)
        self.log("val/ce_f1", one[1], prog_bar=True)
        self.log("val/ce_f1_macro", sum(f1 for _, f1 in each) / len(each))
        self.log("val/threshold", one[0])
        areas = [auc(*pair) for pair in zip(probabilities.T, found.T, strict=True)]
        for name, area, (_, f1) in zip(THIRTEEN, areas, each, strict=True):
            key = name.lower().replace(" ", "_")
            self.log(f"auc/{key}", area)
            self.log(f"f1/{key}", f1)
        known = [area for area in areas if area == area]
        self.log("val/auc", sum(known) / len(known) if known else float("nan"), prog_bar=True)

    def write(self, batch: Batch) -> list[str]:
        """Name the findings whose probability reaches their threshold, for each study of a batch."""
        above = self(batch).sigmoid() >= self.thresholds
        names = [[CONDITIONS[column] for column in row.nonzero()[:, 0].tolist()] for row in above]
        reports = ["".join(f"{name}. " for name in found).strip() or NOTHING for found in names]
        listed = [", ".join(found) or "No Finding" for found in names]
        if self.think == "absent":
            return [f"<report>{report}</report>" for report in reports]
        return [
            f"<think>{think}</think><report>{report}</report>" for think, report in zip(listed, reports, strict=True)
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the thresholds."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["thresholds"] = self.thresholds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also load the thresholds."""
        super().on_load_checkpoint(checkpoint)
        self.thresholds.copy_(checkpoint["thresholds"])


def auc(probabilities: Tensor, found: Tensor) -> float:
    """Area under the ROC curve, by ranks; nan without both kinds.

    Args:
        probabilities: (N,).
        found: (N,) bool.
    """
    positive, negative = probabilities[found], probabilities[~found]
    if not len(positive) or not len(negative):
        return float("nan")
    order = negative.sort().values
    below = torch.searchsorted(order, positive, right=False) + torch.searchsorted(order, positive, right=True)
    return float(below.double().sum() / 2 / len(positive) / len(negative))
