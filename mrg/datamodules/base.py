"""Base class of the data modules: three splits of studies, and loaders that pass them to a collator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch.utils.data import DataLoader

from mrg.datamodules.balance import check_balance
from mrg.datamodules.collate import Batch, Skipped
from mrg.datamodules.images.augment import Augmentation, augmented, check_readers
from mrg.datamodules.loading import (
    AheadLoader,
    BatchDataset,
    RaisingCollator,
    RankBatches,
    SkippingCollator,
    StudyDataset,
    StudyReader,
)
from mrg.datamodules.order import TrainingOrder
from mrg.datamodules.selection import Select, as_selection, check_reward
from mrg.datamodules.study import Study, StudyTable, random_subset
from mrg.datamodules.workers import init_worker
from mrg.errors import UserError, counted
from mrg.files import write_lines
from mrg.log import log


def check_choices(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check arguments that are annotated as `Literal`, as the command line does.

    Args:
        function: Function whose signature lists the choices.
        values: Values by argument name; other names are ignored.

    Raises:
        UserError: If a value is not one of the choices.
    """
    for name, hint in get_type_hints(function).items():
        if get_origin(hint) is Literal and values[name] not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise UserError(f"Expected argument `{name}` to be one of {choices}, but got {values[name]!r}.")


def _with_reference(studies: Sequence[Study]) -> Sequence[Study]:
    """The studies with a reference; a table on disk has no others."""
    if isinstance(studies, StudyTable) or all(study.report.strip() for study in studies):
        return studies
    return [study for study in studies if study.report.strip()]


class ReportDataModule(TrainingOrder):
    """Base class of data modules; a subclass returns its studies in `read`.

    Images are read and preprocessed in the loader's workers by `collator`, which the model's module sets in its setup,
    because the processor belongs to the policy.

    Args:
        batch_size: Studies per training batch.
        eval_batch_size: Studies per batch in validation, test and prediction.
        num_workers: Number of loader processes.
        limit_train: Size of a random subset of the training studies; 0 for all.
        limit_val: Size of a random subset of the validation studies; 0 for all.
        limit_test: Size of a random subset of the test studies; 0 for all.
        on_error: What to do if an image cannot be read: `"raise"` an error, or `"skip"` the study, which is reported
            once and counted; in training the next study replaces it.
        augment: Random changes of training images; None changes none.
        importance: Weight each training study by the inverse of how often it is drawn, so that `balance` and `select`
            do not change what is learned on average; for SFT and GRPO.
        select: Selection of training studies whose rewards vary, for GRPO: `variance`, or its settings.
        balance: How many times as often training studies with a finding are drawn, by condition, such as
            `{Cardiomegaly: 2}`, or `"inverse_prevalence"`; None draws each study once per epoch.

    Attributes:
        splits: Studies of `"train"`, `"val"` and `"test"` with a reference report, once they are read.
        no_reference: Ids of the studies of each split without a reference. They are predicted, but neither trained on
            nor scored.
        num_read: Number of studies per split before the limits.
        removed: Number of studies that each filter of `read` removed, by its name in words.
        skipped: Studies that were skipped so far, by split and id; see `on_error`.
        finished: Ids of studies that need no report any more, by split: `test` or `predict` is resumed.
        dropped: Missing files that `read` left out, by the setting that allows it.
        knows_next: Set by a module that needs the next training batch with each batch.
        checking: Set by `python -m mrg data check`: `read` keeps studies that would stop a run, such as those with a
            missing image or a repeated id, so that all can be listed, and leaves training targets as written.
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
        augment: Augmentation | None = None,
        balance: dict[str, float] | Literal["inverse_prevalence"] | None = None,
        importance: bool = False,
        select: Select = None,
    ) -> None:
        super().__init__()
        check_choices(ReportDataModule.__init__, locals())
        limits = {"train": limit_train, "val": limit_val, "test": limit_test}
        numbers = [("num_workers", num_workers, 0), *((f"limit_{split}", limit, 0) for split, limit in limits.items())]
        for name, value, least in (("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1), *numbers):
            if value < least:
                raise UserError(f"Expected data.init_args.{name} to be at least {least}, but got {value}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.limits = limits
        self.on_error = on_error
        check_balance(balance)
        self.augment = augment
        self.balance = balance
        self.importance = importance
        self.select = as_selection(select)
        self.skipped: dict[str, dict[str, Skipped]] = {"train": {}, "val": {}, "test": {}, "predict": {}}
        self.splits: dict[str, Sequence[Study]] = {}
        self.no_reference: dict[str, list[str]] = {}
        self._predicted: Sequence[Study] = ()
        self.num_read: dict[str, int] = {}
        self.removed: dict[str, int] = {}
        self.dropped: dict[str, list[str]] = {}
        self.finished: dict[str, frozenset[str]] = {}
        self.checking = False
        self.knows_next = False
        self.collator: Callable[[list[Study]], Any] | None = None

    def read(self) -> Mapping[str, Sequence[Study]]:
        """Read all studies, `{"train": [...], "val": [...], "test": [...]}`, and count filtered ones in `removed`.

        A large data set returns sequences that make a study on access.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read().")  # abstract

    def setup(self, stage: str | None = None) -> None:
        """Read the studies once, whatever the stage: baselines need the training reports at test time, too."""
        if stage == "fit" and self.trainer:
            check_reward(self.select, self.trainer.lightning_module)
            self.check_importance()
            check_readers(self.augment, self.trainer.lightning_module)
        if not self.splits:
            every = self.read()
            self._predicted = random_subset(every.get("test", ()), self.limits["test"])
            splits = every if self.checking else {name: _with_reference(studies) for name, studies in every.items()}
            self.no_reference = {
                name: [study.id for study in studies if not study.report.strip()]
                for name, studies in every.items()
                if len(splits[name]) < len(studies)
            }
            self.splits = {name: random_subset(studies, self.limits[name]) for name, studies in splits.items()}
            self.num_read = {name: len(studies) for name, studies in splits.items()}

    def describe(self) -> str:
        """Describe in one line what was read, and which published variant of the data set it is."""
        self.setup()
        counts = ", ".join(f"{name} {len(studies)}" for name, studies in self.splits.items())
        return f"{type(self).__name__} ({counts}{self.describe_subset()})"

    def describe_subset(self) -> str:
        """Studies without a reference and random subsets, as the end of a description; empty if there are none."""
        pairs = {name: (len(studies), self.num_read[name]) for name, studies in self.splits.items()}
        subsets = ", ".join(f"{name} {few:,} of {all_:,}" for name, (few, all_) in pairs.items() if few < all_)
        without = ", ".join(f"{name} {len(names):,}" for name, names in self.no_reference.items())
        text = f"; without a reference, neither trained on nor scored: {without}" if without else ""
        return f"{text}; random subset: {subsets}" if subsets else text

    def train_reports(self) -> list[str]:
        """Reports of the training split, for the most frequent report and the tokenizer of a tiny policy."""
        self.setup()
        studies = self.splits["train"]
        return studies.reports() if isinstance(studies, StudyTable) else [study.report for study in studies]

    def to_predict(self) -> Sequence[Study]:
        """Studies for which `predict` writes reports: the test split, with the studies without a reference."""
        return self._predicted

    def write_predictions(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Write the predictions, one row per study, into the run's folder, and print the path."""
        write_lines(folder / "predict.jsonl", rows)
        print(f"{counted(len(rows), 'report')}: {folder / 'predict.jsonl'}", flush=True)

    def write_partial_predictions(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Handle the predictions of an interrupted `predict`: part of a split is not written."""

    def _loader(
        self, split: str, studies: Sequence[Study], batch_size: int, shuffle: bool, share: bool = True
    ) -> DataLoader[Any]:
        dataset, collate = self._source(split, studies, replace=shuffle)
        options = self._options()
        num_ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        names = self.finished.get(split, ())
        if share and not shuffle and (num_ranks > 1 or names):
            finished = {index for index, study in enumerate(studies) if study.id in names} if names else ()
            sampler = RankBatches(len(studies), batch_size, num_ranks, rank, finished)
            return DataLoader(BatchDataset(collate, dataset), batch_size=None, sampler=sampler, **options)
        order = self._sampler(studies) if shuffle else None
        kind = AheadLoader if shuffle and self.knows_next else DataLoader
        return kind(
            dataset,
            batch_size=batch_size,
            sampler=order,
            # A partial last batch would make one optimizer step noisier than the others.
            drop_last=order is not None and len(order) >= batch_size,
            collate_fn=collate,
            **options,
        )

    def _source(self, split: str, studies: Sequence[Study], replace: bool) -> tuple[Any, Any]:
        """Items of a split, and the collator that makes batches of them."""
        if self.collator is None:
            raise UserError("The data module has no collator. A ReportModule sets it; without one, set `collator`.")
        if not len(studies):
            remedy = "Only `predict` can use them" if self.no_reference.get(split) else "Each split in use needs some"
            raise UserError(f"There are no studies to load: {self.describe()}. {remedy}.")
        collate: Any = self.collator
        if self.on_error == "skip" and isinstance(collate, StudyReader):
            # The collator reads the studies itself, because it may need others than those of the batch.
            return range(len(studies)), SkippingCollator(collate, studies, split, replace=replace)
        return StudyDataset(studies), RaisingCollator(collate)

    def _options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": init_worker,
            # Otherwise every start of a loader draws from the global generator, which a resumed run does more often.
            "generator": torch.Generator(),
        }

    def note_skipped(self, batch: Any) -> None:
        """Record the studies that a batch skipped, and log each once."""
        for study in getattr(batch, "skipped", ()):
            known = self.skipped.setdefault(study.split, {})
            if study.id not in known:
                known[study.id] = study
                log.warning("Skipped in %s (%d so far): %s", study.split, len(known), study.reason)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Record the studies that a batch skipped, and weight the others; Lightning calls this in the main process."""
        self.note_skipped(batch)
        if self.importance and self.trainer and self.trainer.training and isinstance(batch, Batch):
            batch.importance = self.importance_of(batch.study_id)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment the images of a training batch; Lightning calls this on the device of the batch."""
        trainer = self.trainer
        if self.augment is None or trainer is None or not trainer.training or not isinstance(batch, Batch):
            return batch
        collator: Any = self.collator
        number = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        seed = hash((trainer.train_dataloader.sampler.seed, trainer.global_rank, number, 1)) % 2**63  # type: ignore
        generator = torch.Generator().manual_seed(seed)
        return augmented(batch, self.augment, collator.processor.image_processor, generator)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches.

        Raises:
            UserError: If an epoch has fewer batches than `trainer.val_check_interval`.
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
                f"{trainer.world_size} processes), but got {every}. Set it to a fraction of an epoch such as 0.5, or "
                "set trainer.check_val_every_n_epoch to null to count batches across epochs."
            )

    def train_batches(self, batches: Sequence[list[int]]) -> DataLoader[Any]:
        """Given batches of training studies, without those whose images cannot be read if these are skipped."""
        dataset, collate = self._source("train", self.splits["train"], replace=False)
        chosen: Any = [(batch, True) for batch in batches]
        return DataLoader(BatchDataset(collate, dataset), batch_size=None, sampler=chosen, **self._options())

    def train_in_order(self) -> DataLoader[Any]:
        """All training studies once on every rank, in the order of the split."""
        return self._loader("train", self.splits["train"], self.eval_batch_size, shuffle=False, share=False)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches in the order of the split."""
        return self._loader("val", self.splits["val"], self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in the order of the split."""
        return self._loader("test", self.splits["test"], self.eval_batch_size, shuffle=False)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of the studies of `to_predict`."""
        return self._loader("predict", self.to_predict(), self.eval_batch_size, shuffle=False)
