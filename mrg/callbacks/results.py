"""The output of a run: predictions, results, a table, and the policy as a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torchmetrics import Metric

import mrg
from mrg.callbacks.checkpoint import Checkpoints
from mrg.datamodules.errors import first_names
from mrg.datamodules.study import Study
from mrg.files import append_lines, write_json, write_lines
from mrg.log import log
from mrg.metrics.ce import CEF1
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import (
    CONSTANT_NORMAL,
    evaluate_systems,
    format_table,
    most_frequent_report,
    remark_on_frequency,
)
from mrg.metrics.labels import CachingLabeler, Labeler
from mrg.metrics.mccs import MCCS
from mrg.modules.arguments import plain_arguments
from mrg.modules.base import ReportModule
from mrg.modules.completion import count_unfinished, warn_unfinished
from mrg.modules.policy.ranks import failing_together, gather
from mrg.run.checkpoint_file import fingerprint, policy_fingerprint
from mrg.run.checkpoints import CheckpointFolder
from mrg.run.part_files import PartFiles
from mrg.strategy import FSDP2

PARTS = {"test": "predictions", "predict": "predict"}
"""Stage -> name of the file that it writes, without its suffix."""

LABELS = {"prediction": "labels", "target": "target_labels"}
"""Text of a prediction -> the key of its (14,) label classes, if the module has computed them already."""


class ResultWriter(L.Callback):
    """Writes predictions, results and the policy into the folder of a run.

    Reports are written as they are finished, see `PartFiles`, so that no crash loses them.

    Args:
        folder: Folder of the run, `<runs>/<name>`.
        resume: Whether `test` and `predict` use the reports of one that did not finish.
        checkpoint: Checkpoint that they use, which the trainer does not know before the loaders are made.
    """

    def __init__(self, folder: Path, resume: bool = False, checkpoint: str = "") -> None:
        self.folder, self.resume, self.checkpoint = folder, resume, checkpoint
        self.parts: PartFiles | None = None
        self.finished: list[dict[str, Any]] = []
        self.num_written = 0
        self.predicted: list[dict[str, Any]] = []
        self.kept = False
        self.tested: tuple[list[dict[str, Any]], dict[str, Any], Labeler] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the finished reports, or remove those of an earlier run, before the loaders are made."""
        if stage not in PARTS:
            return
        assert isinstance(pl_module, ReportModule)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        studies = data.splits["test"] if stage == "test" else data.to_predict()
        identity = _identity(trainer, pl_module, self.checkpoint, studies)
        self.parts = PartFiles(self.folder, PARTS[stage], identity, trainer.global_rank)
        self.finished = []
        with failing_together(trainer.world_size, lambda: None):
            if trainer.is_global_zero and self.resume:
                self.finished = _as_written(self.parts.resume(), studies)
                log.info(f"{len(self.finished):,} of {len(studies):,} reports are finished already.")
            elif trainer.is_global_zero:
                self.parts.start_over()
        # Also a barrier: other processes write once the files of an earlier run are gone.
        names = trainer.strategy.broadcast([row["id"] for row in self.finished])
        data.finished[stage] = frozenset(names)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the part files, once results and pages are written too; Lightning calls this after success only."""
        if self.parts is not None and stage in PARTS and trainer.is_global_zero:
            self.parts.remove()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what is trained on which data."""
        sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
        total, trained = sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
        data = trainer.datamodule  # type: ignore[attr-defined]
        log.info(f"{type(pl_module).__name__} on {data.describe()}")
        log.info(f"Policy with {total / 1e6:,.2f} million weights, of which {trained / 1e6:,.2f} million are trained.")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the data that are tested on."""
        log.info(f"Data: {trainer.datamodule.describe()}")  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Append the completions that a round shows to samples.jsonl."""
        samples = getattr(pl_module, "samples", None)
        if samples and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            append_lines(self.folder / "samples.jsonl", samples)
            samples.clear()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Append what a validation has noticed to events.jsonl."""
        if events := getattr(pl_module, "events", None):
            if trainer.is_global_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
                append_lines(self.folder / "events.jsonl", events)
            events.clear()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best policy such that transformers, and the `policy` setting of the next run, can load it."""
        assert isinstance(pl_module, ReportModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        for stopping in trainer.early_stopping_callbacks:
            if reason := getattr(stopping, "stopping_reason_message", None):
                log.info(f"Early stopping ended the run at step {trainer.global_step} of {trainer.max_steps}: {reason}")
        for split in ("train", "val"):
            _log_skipped(len(data.splits[split]), split, _skipped(trainer, split))
        best = self.folder / "checkpoints" / "best.ckpt"
        if not trainer.strategy.broadcast(best.exists()):
            if trainer.is_global_zero:
                self._print_unscored()
            return
        if isinstance(trainer.strategy, FSDP2):
            trainer.strategy.load_checkpoint(best)
        else:
            state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            unknown = pl_module.load_state_dict(state, strict=False).unexpected_keys  # frozen weights are missing
            assert not unknown, unknown
        pl_module.policy.save(self.folder / "policy", trainer.is_global_zero, pl_module.max_new_tokens)
        if trainer.is_global_zero:
            print(f"Best checkpoint: {best}{_best_score(trainer)}")
            print(f"Policy: {self.folder / 'policy'}{pl_module.policy.merge_note()}")
            self._print_files()

    def _print_files(self) -> None:
        print(f"Page: {self.folder / 'index.html'}", flush=True)
        metrics = self.folder / "metrics.csv"
        if metrics.exists():  # not in a run of fewer steps than trainer.log_every_n_steps
            print(f"Metrics: {metrics}", flush=True)

    def _print_unscored(self) -> None:
        """Print what a run without a score has written, and the commands that score it and write its policy."""
        print(
            "No score was computed because no validation was due (trainer.val_check_interval, "
            "trainer.limit_val_batches), so there is no best checkpoint and no policy."
        )
        files, config = CheckpointFolder(self.folder / "checkpoints"), self.folder / "config.yaml"
        if names := files.names():
            last = files.path / names[0]
            print(f"Last checkpoint: {last}")
            if config.is_file():
                options = f"--config {config} --ckpt_path {last}"
                print(f"Score it with: python -m mrg validate {options}")
                print(f"Write its policy with: python -m mrg export {options} --output {self.folder / 'policy'}")
        self._print_files()

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the finished reports into predictions and scores, which the module has just reset."""
        assert isinstance(pl_module, ReportModule)
        pl_module.predictions, self.num_written = [dict(row) for row in self.finished], len(self.finished)
        if not self.finished:
            return
        pl_module.num_scored = len(self.finished)
        texts = [[row[text] for row in self.finished] for text in LABELS]
        labels = [torch.stack([row[key] for row in self.finished]).to(pl_module.device) for key in LABELS.values()]
        # As in the module: MCCS of an empty report is 0 by its text, and a metric of the user's takes texts.
        known = (CEF1, MCCS) if all(text.strip() for side in texts for text in side) else (CEF1,)
        for metric in pl_module.scores.values():
            assert isinstance(metric, Metric)
            metric.update(*(labels if isinstance(metric, known) else texts))
        valid = torch.tensor([float(row["format"]) for row in self.finished], device=pl_module.device)
        cast(Metric, pl_module.means["format"]).update(valid)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Write the reports of a batch to disk."""
        assert isinstance(pl_module, ReportModule)
        assert self.parts is not None
        self.parts.write(pl_module.predictions[self.num_written :])
        self.num_written = len(pl_module.predictions)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write predictions and results, and print the table."""
        assert isinstance(pl_module, ReportModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = _gather(trainer, pl_module.predictions, data.splits["test"], "test")
        skipped = _skipped(trainer, "test")
        if not trainer.is_global_zero:
            return
        baselines = {"constant normal": CONSTANT_NORMAL}
        if reports := data.train_reports():  # a test set without training data has none
            baselines["most frequent report"] = most_frequent_report(reports)
        systems = {name: [text] * len(rows) for name, text in baselines.items()}
        systems["model"] = [row["prediction"] for row in rows]
        if rows and "greedy" in rows[0]:  # the model's report is one of several samples
            systems["greedy"] = [row["greedy"] for row in rows]
        rate = sum(row["format"] for row in rows) / len(rows)
        known = {row[text]: row.pop(key) for row in rows for text, key in LABELS.items() if key in row}
        labeler = CachingLabeler(pl_module.labeler, known)
        results = evaluate_systems(
            systems,
            [row["target"] for row in rows],
            labeler,
            pl_module.margin,
            {"model": rate} if pl_module.trained else None,
            [("model", name) for name in systems if name != "model"],
            best=BestConstants.of(reports, labeler, pl_module.margin),
        )
        protocol = {
            "mrg": mrg.__version__,
            "policy": pl_module.source,
            "checkpoint": str(trainer.ckpt_path or ""),
            "fingerprint": fingerprint(Path(str(trainer.ckpt_path))) if trainer.ckpt_path else "",
            "data": {"module": type(data).__name__, **{split: len(studies) for split, studies in data.splits.items()}},
            "skipped": {"count": len(skipped), "studies": skipped},
            "no_reference": data.no_reference.get("test", []),
            "completions": (unfinished := count_unfinished(rows)),
            "data_description": data.describe(),
            "baselines": baselines,
        }
        results = {"protocol": protocol, **results}
        self.tested = rows, results, labeler
        self.folder.mkdir(parents=True, exist_ok=True)
        write_lines(self.folder / "predictions.jsonl", rows)
        write_json(self.folder / "results.json", results)
        print(format_table(results))
        if names := data.no_reference.get("test"):
            print(f"Excluded: {len(names):,} studies of the test split have no reference: {first_names(names)}.")
        if results["best_constant"] is None:
            print("The data have no training reports, so the best constant report is not known.")
        if remark := remark_on_frequency(reports, "most frequent report", "training report"):
            print(remark)
        _log_skipped(len(data.splits["test"]), "test", skipped)
        warn_unfinished(unfinished, pl_module.max_new_tokens)
        print(f"Predictions: {self.folder / 'predictions.jsonl'}\nResults: {self.folder / 'results.json'}", flush=True)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start with the finished reports."""
        self.predicted, self.kept = list(self.finished), False

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Write the reports of a batch to disk."""
        assert self.parts is not None
        self.parts.write(outputs)
        self.predicted += outputs

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the data module write the reports in its format."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.predicted = _gather(trainer, self.predicted, data.to_predict(), "predict")
        self.kept = True
        skipped = _skipped(trainer, "predict")
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            data.write_predictions(self.predicted, self.folder)
            if self.predicted and not any(row["prediction"].strip() for row in self.predicted):
                log.warning(
                    f"All {len(self.predicted)} reports are empty: no completion has a <report> section with text. "
                    "Look at the key `completion`; completions may be truncated, see model.init_args.max_new_tokens."
                )
        _log_skipped(len(data.to_predict()), "predict", skipped)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tell how to resume, and write the finished reports of one process; others cannot be asked any more."""
        if self.parts is not None and (num := self.parts.count()):
            log.warning(f"{num:,} finished reports are in {self.parts.pattern}: use them with --resume auto.")
        if trainer.state.fn == "predict" and trainer.world_size == 1 and self.predicted and not self.kept:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.datamodule.write_partial_predictions(self.predicted, self.folder)  # type: ignore[attr-defined]


def _identity(trainer: L.Trainer, module: ReportModule, checkpoint: str, studies: Sequence[Study]) -> dict[str, Any]:
    """Everything on which reports depend, for messages in parts."""
    folder, prompts = Path(module.source), [[s.id, s.indication, s.prior.report if s.prior else ""] for s in studies]
    return {
        "version of mrg": mrg.__version__,
        "policy": module.source,
        # The weights of a run are in its checkpoint, or compared with it when it is loaded.
        "content of the policy": policy_fingerprint(folder, weights=not checkpoint) if folder.is_dir() else "",
        "checkpoint": fingerprint(Path(checkpoint)) if checkpoint else "",
        "seed": torch.initial_seed() if module.source == "tiny" and not checkpoint else "",  # of random weights
        "samples": "" if module.consensus is None else module.consensus.describe(),
        "trainer.precision": str(trainer.precision),
        "settings of the model": _digest(plain_arguments(module.hparams)),
        "labeler": str(getattr(module.labeler, "name", type(module.labeler).__name__)),
        "data": [trainer.datamodule.describe(), _digest(prompts)],  # type: ignore[attr-defined]
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _as_written(rows: Sequence[dict[str, Any]], studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Finished rows as the module makes them, without those of studies that have changed."""
    target = {study.id: study.report for study in studies}
    rows = [row for row in rows if row["id"] in target and row.get("target") in (None, target[row["id"]])]
    return [row | {key: torch.tensor(row[key]) for key in LABELS.values() if key in row} for row in rows]


def _best_score(trainer: L.Trainer) -> str:
    """Return the score by which the best checkpoint was chosen, if it is known."""
    chosen = trainer.checkpoint_callback
    if not isinstance(chosen, Checkpoints) or not chosen.best.name:
        return ""
    return f" ({chosen.best.monitor} {chosen.best.score:.3f})"


def _gather(
    trainer: L.Trainer, rows: list[dict[str, Any]], studies: Sequence[Study], split: str
) -> list[dict[str, Any]]:
    """Return the rows of all ranks in the order of the studies."""
    if trainer.world_size == 1 and not trainer.datamodule.finished.get(split):  # type: ignore[attr-defined]
        return rows
    parts = gather(rows, trainer.world_size)
    by_id = {row["id"]: row for part in parts for row in part}
    return [by_id[study.id] for study in studies if study.id in by_id]


def _skipped(trainer: L.Trainer, split: str) -> list[dict[str, str]]:
    """Return id and reason of the studies that any rank skipped, sorted by id."""
    found = trainer.datamodule.skipped[split]  # type: ignore[attr-defined]
    own = {name: study.reason for name, study in found.items()}
    reasons = {name: reason for part in gather(own, trainer.world_size) for name, reason in part.items()}
    return [{"id": name, "reason": reason} for name, reason in sorted(reasons.items())]


def _log_skipped(total: int, split: str, skipped: list[dict[str, str]]) -> None:
    if skipped:
        log.warning(f"Skipped in {split}: {len(skipped)} of {total} studies with unreadable images (see above).")
