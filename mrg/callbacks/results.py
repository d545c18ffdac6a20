"""What a run leaves behind: predictions, results, a table, and the policy as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

import mrg
from mrg.callbacks.checkpoint import Checkpoints
from mrg.datamodules.study import Study
from mrg.files import append_lines, write_json, write_lines
from mrg.metrics.evaluation import (
    CONSTANT_NORMAL,
    evaluate_systems,
    format_table,
    most_frequent_report,
    remark_on_frequency,
)
from mrg.modules.base import ReportModule
from mrg.modules.policy.precision import rounding
from mrg.modules.ranks import gather
from mrg.run.checkpoints import CheckpointFolder
from mrg.run.results_state import fingerprint
from mrg.strategy import FSDP2


class ResultWriter(L.Callback):
    """Writes the run folder.

    Args:
        folder: `<runs>/<name>`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.predicted: list[dict[str, Any]] = []
        self.kept = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what is trained on what."""
        sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
        total, trained = sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
        if trainer.is_global_zero:
            data = trainer.datamodule  # type: ignore[attr-defined]
            print(f"{type(pl_module).__name__} on {data.describe()}")
            print(
                f"Policy of {total / 1e6:,.1f} million weights, {trained / 1e6:,.2f} million of them trained.",
                flush=True,
            )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what is judged on what."""
        if trainer.is_global_zero:
            print(f"Data: {trainer.datamodule.describe()}", flush=True)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Add the completions that a round shows to samples.jsonl."""
        samples = getattr(pl_module, "samples", None)
        if samples and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            append_lines(self.folder / "samples.jsonl", samples)
            samples.clear()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best policy so that transformers, and the next run's `policy:` setting, can load it."""
        assert isinstance(pl_module, ReportModule)
        for split in ("train", "val"):
            skipped = _skipped(trainer, split)
            if trainer.is_global_zero:
                _say_skipped(len(trainer.datamodule.splits[split]), split, skipped)  # type: ignore[attr-defined]
        best = self.folder / "checkpoints" / "best.ckpt"
        if not trainer.strategy.broadcast(best.exists()):
            if trainer.is_global_zero:
                self._say_unscored()
            return
        if isinstance(trainer.strategy, FSDP2):
            trainer.strategy.load_checkpoint(best)
        else:
            state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            pl_module.load_state_dict(state, strict=False)
        pl_module.policy.save(self.folder / "policy", write=trainer.is_global_zero)
        if trainer.is_global_zero:
            print(f"Best checkpoint: {best}{_best_score(trainer)}")
            print(f"Policy: {self.folder / 'policy'}{rounding(pl_module.policy)}")
            self._say_where()

    def _say_where(self) -> None:
        print(f"Page: {self.folder / 'index.html'}\nMetrics: {self.folder / 'metrics.csv'}", flush=True)

    def _say_unscored(self) -> None:
        """What a run without a score left behind, and what to run."""
        print(
            "No score was computed, as no validation was due (trainer.val_check_interval, trainer.limit_val_batches): "
            "there is no best checkpoint, and no policy was written."
        )
        files, config = CheckpointFolder(self.folder / "checkpoints"), self.folder / "config.yaml"
        if names := files.names():
            last = files.path / names[0]
            print(f"Last checkpoint: {last}")
            if config.is_file():
                options = f"--config {config} --ckpt_path {last}"
                print(f"Score it with: python -m mrg validate {options}")
                print(f"Write its policy with: python -m mrg export {options} --output {self.folder / 'policy'}")
        self._say_where()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write predictions.jsonl and results.json, print the table."""
        assert isinstance(pl_module, ReportModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = _gather(trainer, pl_module.predictions, data.splits["test"])
        skipped = _skipped(trainer, "test")
        if not trainer.is_global_zero:
            return
        baselines = {"constant normal": CONSTANT_NORMAL}
        if reports := data.train_reports():  # data to judge on alone have none
            baselines["most frequent report"] = most_frequent_report(reports)
        systems = {name: [text] * len(rows) for name, text in baselines.items()}
        systems["model"] = [row["prediction"] for row in rows]
        rate = sum(row["format"] for row in rows) / len(rows)
        results = evaluate_systems(
            systems,
            [row["target"] for row in rows],
            pl_module.labeler,
            pl_module.margin,
            {"model": rate} if pl_module.trained else None,
            [("model", name) for name in baselines],
        )
        protocol = {
            "mrg": mrg.__version__,
            "policy": pl_module.source,
            "checkpoint": str(trainer.ckpt_path or ""),
            "fingerprint": fingerprint(Path(str(trainer.ckpt_path))) if trainer.ckpt_path else "",
            "data": {"module": type(data).__name__, **{split: len(studies) for split, studies in data.splits.items()}},
            "skipped": {"count": len(skipped), "studies": skipped},
            "data_description": data.describe(),
            "baselines": baselines,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_lines(self.folder / "predictions.jsonl", rows)
        write_json(self.folder / "results.json", {"protocol": protocol, **results})
        print(format_table(results))
        if remark := remark_on_frequency(reports, "most frequent report", "training report"):
            print(remark)
        _say_skipped(len(data.splits["test"]), "test", skipped)
        print(f"Predictions: {self.folder / 'predictions.jsonl'}\nResults: {self.folder / 'results.json'}", flush=True)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the reports of an earlier prediction."""
        self.predicted, self.kept = [], False

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Keep what was written."""
        self.predicted += outputs

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hand what was written to the data module, which knows where it belongs."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.predicted = _gather(trainer, self.predicted, data.to_predict())
        self.kept = True
        skipped = _skipped(trainer, "predict")
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            data.keep_predictions(self.predicted, self.folder)
            _say_skipped(len(data.to_predict()), "predict", skipped)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep the reports that a prediction on one process had finished; others cannot be asked any more."""
        if trainer.state.fn == "predict" and trainer.world_size == 1 and self.predicted and not self.kept:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.datamodule.keep_finished(self.predicted, self.folder)  # type: ignore[attr-defined]


def _best_score(trainer: L.Trainer) -> str:
    """The score that the best checkpoint was chosen by, where it is known."""
    chosen = trainer.checkpoint_callback
    if not isinstance(chosen, Checkpoints) or not chosen.best.name:
        return ""
    return f" ({chosen.best.monitor} {chosen.best.score:.3f})"


def _gather(trainer: L.Trainer, rows: list[dict[str, Any]], studies: Sequence[Study]) -> list[dict[str, Any]]:
    """The rows of all ranks, in the order of the studies."""
    if trainer.world_size == 1:
        return rows
    parts = gather(rows, trainer.world_size)
    by_id = {row["id"]: row for part in parts for row in part}
    return [by_id[study.id] for study in studies if study.id in by_id]


def _skipped(trainer: L.Trainer, split: str) -> list[dict[str, str]]:
    """Id and reason of the studies that any rank left out, in the order of their ids."""
    found = trainer.datamodule.skipped[split]  # type: ignore[attr-defined]
    own = {name: study.reason for name, study in found.items()}
    reasons = {name: reason for part in gather(own, trainer.world_size) for name, reason in part.items()}
    return [{"id": name, "reason": reason} for name, reason in sorted(reasons.items())]


def _say_skipped(total: int, split: str, skipped: list[dict[str, str]]) -> None:
    if skipped:
        print(f"Skipped in {split}: {len(skipped)} of {total} studies, whose images cannot be read (reasons above).")
