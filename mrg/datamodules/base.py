"""What every data module shares: three lists of studies, and loaders that hand them to a collator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from mrg.datamodules.collate import Skipped
from mrg.datamodules.evaluation import PartCollator, Parts, RankBatches
from mrg.datamodules.sampler import StudySampler
from mrg.datamodules.skip import NamingCollator, SkippingCollator, StudyReader
from mrg.datamodules.splits import draw
from mrg.datamodules.study import Study
from mrg.datamodules.study_table import StudyTable
from mrg.errors import UserError
from mrg.files import write_lines

_log = logging.getLogger(__name__)


class StudyDataset(Dataset[Study]):
    """A sequence of studies as a dataset: one item is one study."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self.studies = studies

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Study:
        return self.studies[index]


class ReportDataModule(L.LightningDataModule):
    """Serves studies; a subclass returns them in `read`.

    Images are read and preprocessed in the loader's workers by the `collator`, which the model's module sets when it is
    set up: the processor belongs to the policy, not to the data.

    Args:
        batch_size: Studies per training batch.
        eval_batch_size: Studies per batch in validation, test and prediction.
        num_workers: Loader processes.
        limit_train: Use only so many training studies, see `draw`; 0 uses all.
        limit_val: The same for validation.
        limit_test: The same for test.
        on_error: What an image that cannot be read does: `"raise"` an error, or `"skip"` its study, which is then
            reported once and counted; in training the next study takes its place. See `mrg.datamodules.skip`.

    Attributes:
        splits: The studies of `"train"`, `"val"` and `"test"`, once they are read.
        num_read: How many studies each split had before `limit_train`, `limit_val` and `limit_test`.
        removed: What each filter of `read` took away: its name, in words, and the number of studies.
        skipped: The studies that were left out so far, by split and id; see `on_error`.
        dropped: Files that are not there, by the setting that lets `read` go on without them.
        checking: Set by `python -m mrg data check`: `read` then keeps studies at which a run would stop, for an image
            that is missing or an id that stands twice, so that all can be listed, and leaves the training targets as
            written.
    """

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int = 16,
        num_workers: int = 2,
        limit_train: int = 0,
        limit_val: int = 0,
        limit_test: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise UserError(f"Expected data.init_args.{name} to be at least 1, but got {value}.")
        if on_error not in ("raise", "skip"):
            raise UserError(f"Expected data.init_args.on_error to be 'raise' or 'skip', but got {on_error!r}.")
        limits = {"train": limit_train, "val": limit_val, "test": limit_test}
        for name, value in [("num_workers", num_workers), *((f"limit_{split}", n) for split, n in limits.items())]:
            if value < 0:
                raise UserError(f"Expected data.init_args.{name} to be at least 0, but got {value}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.limits = limits
        self.on_error = on_error
        self.skipped: dict[str, dict[str, Skipped]] = {"train": {}, "val": {}, "test": {}, "predict": {}}
        self.splits: dict[str, Sequence[Study]] = {}
        self.num_read: dict[str, int] = {}
        self.removed: dict[str, int] = {}
        self.dropped: dict[str, list[str]] = {}
        self.checking = False
        self.collator: Callable[[list[Study]], Any] | None = None
        self.position: dict[str, int] = {}

    def read(self) -> Mapping[str, Sequence[Study]]:
        """Read all studies: `{"train": [...], "val": [...], "test": [...]}`; note in `removed` what filters take away.

        A large data set returns sequences that make a study when it is asked for.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read().")  # abstract

    def setup(self, stage: str | None = None) -> None:
        """Read the studies once, whatever the stage: baselines need the training reports at test time too."""
        if not self.splits:
            splits = self.read()
            self.splits = {name: draw(studies, self.limits[name]) for name, studies in splits.items()}
            self.num_read = {name: len(studies) for name, studies in splits.items()}

    def describe(self) -> str:
        """Say in one line what was read, and which published variant of the data set it is where there are several."""
        self.setup()
        counts = ", ".join(f"{name} {len(studies)}" for name, studies in self.splits.items())
        return f"{type(self).__name__} ({counts}{self.drawn()})"

    def drawn(self) -> str:
        """What `limit_train`, `limit_val` and `limit_test` left of the splits, as the end of a description."""
        pairs = {name: (len(studies), self.num_read[name]) for name, studies in self.splits.items()}
        left = ", ".join(f"{name} {few:,} of {all_:,}" for name, (few, all_) in pairs.items() if few < all_)
        return f"; drawn: {left}" if left else ""

    def train_reports(self) -> list[str]:
        """The training split's reports: the tokenizer of a tiny policy and the most frequent report come from them."""
        self.setup()
        studies = self.splits["train"]
        return studies.reports() if isinstance(studies, StudyTable) else [study.report for study in studies]

    def to_predict(self) -> Sequence[Study]:
        """The studies for which `predict` writes reports, with or without a reference: the test split."""
        return self.splits["test"]

    def keep_predictions(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Write what `predict` wrote, one row for each study, into the run's folder, and say so."""
        write_lines(folder / "predict.jsonl", rows)
        print(f"{len(rows)} reports: {folder / 'predict.jsonl'}", flush=True)

    def keep_finished(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Do as with `keep_predictions` where `predict` was stopped on its way; a part of a split is not kept."""

    def _loader(
        self, split: str, studies: Sequence[Study], batch_size: int, shuffle: bool, share: bool = True
    ) -> DataLoader[Any]:
        if self.collator is None:
            raise UserError("The data module has no collator yet: a ReportModule sets it, or set `collator` yourself.")
        if not len(studies):
            raise UserError(f"There are no studies to load: {self.describe()}; each split in use needs some.")
        dataset: Any = StudyDataset(studies)
        collate: Any = self.collator
        if self.on_error == "skip" and isinstance(collate, StudyReader):
            # The collator reads the studies itself: it may need others than those of the batch.
            dataset, collate = range(len(studies)), SkippingCollator(collate, studies, split, replace=shuffle)
        else:
            collate = NamingCollator(collate)
        options: dict[str, Any] = {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # Without one, starting a loader draws from the global generator, which a resumed run does more often.
            "generator": torch.Generator(),
        }
        if share and not shuffle and self.trainer is not None and self.trainer.world_size > 1:
            parts = RankBatches(len(studies), batch_size, self.trainer.world_size, self.trainer.global_rank)
            collate = PartCollator(collate, dataset)
            return DataLoader(Parts(), batch_size=None, sampler=parts, collate_fn=collate, **options)
        sampler = self._sampler(studies) if shuffle else None
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            # A last partial batch would make one optimiser step noisier than the others.
            drop_last=sampler is not None and len(sampler) >= batch_size,
            collate_fn=collate,
            **options,
        )

    def _sampler(self, studies: Sequence[Study]) -> StudySampler:
        """The training order, from the place that a checkpoint names."""
        trainer = self.trainer
        num_ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        seed = trainer.strategy.broadcast(torch.initial_seed()) if trainer else torch.initial_seed()
        saved, self.position = self.position, {}
        if not saved:
            return StudySampler(studies, seed, num_ranks, rank)
        for name, value in self._counts().items():
            if saved[name] != value:
                raise UserError(
                    f"The checkpoint was written with {saved[name]} {name.replace('_', ' ')}, but this run has "
                    f"{value}: its place among the studies means nothing here. Use the run's own data, or start a new "
                    "run from its policy with model.init_args.policy."
                )
        start = saved["batches"] * self.batch_size
        return StudySampler(studies, saved["seed"], num_ranks, rank, saved["epoch"], start)

    def _counts(self) -> dict[str, int]:
        return {"training_studies": len(self.splits["train"]), "studies_per_batch": self.batch_size}

    def state_dict(self) -> dict[str, int]:
        """The place in the training order: epoch, batches done in it, and what these numbers depend on."""
        trainer = self.trainer
        sampler = getattr(trainer.train_dataloader, "sampler", None) if trainer else None
        if trainer is None or not isinstance(sampler, StudySampler):
            return {}
        epochs: Any = trainer.fit_loop.epoch_progress.current
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed if epochs.processed < epochs.started else 0
        place = {"seed": sampler.seed, "epoch": epochs.processed, "batches": done}
        return place | self._counts()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin training at this place."""
        self.position = dict(state_dict)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note, and log once, which studies a batch had to do without; Lightning calls this in the main process."""
        for study in getattr(batch, "skipped", ()):
            known = self.skipped.setdefault(study.split, {})
            if study.id not in known:
                known[study.id] = study
                _log.warning("Skipped in %s (%d so far): %s", study.split, len(known), study.reason)
        return batch

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches.

        Raises:
            ValueError: If an epoch has fewer than the trainer waits for before it validates.
        """
        loader = self._loader("train", self.splits["train"], self.batch_size, shuffle=True)
        self._check_validation(len(loader))
        return loader

    def _check_validation(self, num_batches: int) -> None:
        trainer = self.trainer
        if trainer is None or trainer.check_val_every_n_epoch is None or not trainer.limit_val_batches:
            return
        limit, every = trainer.limit_train_batches, trainer.val_check_interval
        num_batches = int(num_batches * limit) if isinstance(limit, float) else min(num_batches, limit)
        if isinstance(every, int) and every > num_batches > 0:
            raise UserError(
                f"Expected trainer.val_check_interval to be at most the {num_batches} training batches of an epoch "
                f"({len(self.splits['train'])} studies, data.init_args.batch_size {self.batch_size}, "
                f"{trainer.world_size} processes), but got {every}: give a share of an epoch such as 0.5, or set "
                "trainer.check_val_every_n_epoch to null, which counts on from epoch to epoch."
            )

    def train_in_order(self) -> DataLoader[Any]:
        """All training studies once each on every rank, in the order of the split, without those that are skipped."""
        return self._loader("train", self.splits["train"], self.eval_batch_size, shuffle=False, share=False)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches in the order of the split."""
        return self._loader("val", self.splits["val"], self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in the order of the split."""
        return self._loader("test", self.splits["test"], self.eval_batch_size, shuffle=False)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The studies of `to_predict`, for prediction without scores."""
        return self._loader("predict", self.to_predict(), self.eval_batch_size, shuffle=False)
