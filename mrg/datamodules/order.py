"""The order of training studies: how often each is drawn, and from where a run resumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mrg.datamodules.balance import Balance, study_weights
from mrg.datamodules.loading import StudySampler
from mrg.datamodules.selection import Measured, Selection, describe_selection, selected_weights
from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.log import log
from mrg.metrics import RulesLabeler
from mrg.metrics.conditions import stated
from mrg.metrics.labels import run_labeler


class TrainingOrder(L.LightningDataModule):
    """A data module that can resume its training order anywhere, on any number of ranks.

    Attributes:
        measured: Rewards of the training studies, if they are selected by these.
    """

    splits: dict[str, Sequence[Study]]
    batch_size: int
    balance: Balance | None
    select: Selection | None
    importance: bool

    def __init__(self) -> None:
        super().__init__()
        self.measured: Measured | None = None
        self.position: dict[str, Any] = {}
        self._places: dict[str, int] = {}

    def train_reports(self) -> list[str]:
        """Reports of the training split."""
        raise NotImplementedError(f"{type(self).__name__} must define train_reports().")  # abstract

    def _sampler(self, studies: Sequence[Study]) -> StudySampler:
        """The training order, from the position in the checkpoint if there is one."""
        trainer = self.trainer
        num_ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        seed = trainer.strategy.broadcast(torch.initial_seed()) if trainer else torch.initial_seed()
        options: dict[str, Any]
        if trainer and self.select is not None:
            options = {"reweigh": self._selected, "epoch_studies": self.select.every * self.batch_size}
        else:
            options = {"weights": self._weights()}
        saved, self.position = self.position, {}
        if not saved:
            return StudySampler(studies, seed, num_ranks, rank, **options)
        for name, value in self._counts().items():
            if saved.get(name, 0) != value:
                raise UserError(
                    f"The checkpoint was written with {saved.get(name, 0)} {name.replace('_', ' ')}, but this run has "
                    f"{value}, so that its position in the data has no meaning. Use the run's own data, or start a new "
                    "run from its policy with model.init_args.policy."
                )
        start = saved["batches"] * self.batch_size
        return StudySampler(studies, saved["seed"], num_ranks, rank, saved["epoch"], start, **options)

    def _selected(self, epoch: int) -> Tensor:
        """Weights of the studies in an epoch, by how their rewards vary; measured if that is due."""
        assert self.select is not None
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        # A resumed run may have nothing left to do.
        if self.measured is None or (self.measured.is_due(self.select, epoch) and not self.trainer.fit_loop.done):
            self.measured = module.measure(self.select, epoch)
            found = stated(run_labeler(module.labeler, self.train_reports()).cpu())
            log.info(describe_selection(self.select, self.measured, found))
        return selected_weights(self.select, self.measured.deviation, self._weights())

    def _weights(self) -> Tensor | None:
        if self.balance is None:
            return None
        module: Any = self.trainer.lightning_module if self.trainer else None
        return study_weights(self.balance, self.train_reports(), getattr(module, "labeler", None) or RulesLabeler())

    def check_importance(self) -> None:
        """Check that weights by importance have an effect.

        Raises:
            UserError: If studies are drawn equally often, or the module does not weight them.
        """
        if not self.importance:
            return
        if self.balance is None and self.select is None:
            raise UserError("data.init_args.importance has no effect without balance or select: set it to false.")
        module: Any = self.trainer.lightning_module if self.trainer else None
        if not getattr(module, "weights_studies", False):
            raise UserError(
                f"data.init_args.importance weights studies in SFT and GRPO, but not in {type(module).__name__}: set "
                "it to false."
            )

    def importance_of(self, names: Sequence[str]) -> Tensor:
        """Weights of studies, (n,) float32: 1 / (K p), for a study drawn with probability p among K that are drawn.

        Args:
            names: Ids of n training studies.
        """
        assert self.trainer is not None
        weights: Tensor = self.trainer.train_dataloader.sampler.weights  # type: ignore[union-attr]
        if not self._places:
            self._places = {study.id: index for index, study in enumerate(self.splits["train"])}
        own = weights[[self._places[name] for name in names]]
        # A study that replaces an unreadable one may have a weight of 0.
        return torch.where(own > 0, weights[weights > 0].mean() / own.clamp(min=1e-300), 0.0).float()

    def _counts(self) -> dict[str, int]:
        every = self.select.every if self.select else 0
        counts = {"training_studies": len(self.splits["train"]), "studies_per_batch": self.batch_size}
        return {**counts, "rounds_per_selection": every}

    def state_dict(self) -> dict[str, Any]:
        """Position in the training order: epoch, finished batches, and the numbers on which these depend."""
        trainer = self.trainer
        sampler = getattr(trainer.train_dataloader, "sampler", None) if trainer else None
        if trainer is None or not isinstance(sampler, StudySampler):
            return {}
        epochs: Any = trainer.fit_loop.epoch_progress.current
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed if epochs.processed < epochs.started else 0
        return {"seed": sampler.seed, "epoch": epochs.processed, "batches": done, **self._counts()} | (
            {} if self.measured is None else {"measured": self.measured.state_dict()}
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start training at the position of a checkpoint."""
        self.position = dict(state_dict)
        if (measured := self.position.pop("measured", None)) is not None:
            self.measured = Measured.from_state(measured)
