"""What a run leaves behind: predictions, results, a table, and the policy as a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L

from mrg.metrics.results import CONSTANT_NORMAL, evaluate_systems, format_table, most_frequent_report
from mrg.modules.base import ReportModule


class ResultWriter(L.Callback):
    """Writes the run folder.

    Args:
        folder: `<runs>/<name>`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best policy so that transformers, and the next run's `policy:` setting, can load it."""
        assert isinstance(pl_module, ReportModule)
        best = self.folder / "checkpoints" / "best.ckpt"
        if trainer.is_global_zero and best.is_file():
            import torch

            state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            pl_module.load_state_dict(state, strict=False)
            pl_module.writer.save(self.folder / "policy")
            print(f"Best checkpoint: {best}\nPolicy: {self.folder / 'policy'}")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write predictions.jsonl and results.json, print the table."""
        assert isinstance(pl_module, ReportModule)
        rows = pl_module.predictions
        data = trainer.datamodule  # type: ignore[attr-defined]
        target = [row["target"] for row in rows]
        baselines = {
            "constant normal": CONSTANT_NORMAL,
            "most frequent report": most_frequent_report(data.train_reports()),
        }
        systems = {name: [text] * len(rows) for name, text in baselines.items()}
        systems["model"] = [row["prediction"] for row in rows]
        rate = sum(row["format"] for row in rows) / len(rows)
        results = evaluate_systems(
            systems, target, pl_module.labeler, pl_module.margin, {"model": rate}, [("model", "constant normal")]
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_lines(self.folder / "predictions.jsonl", rows)
        write_json(self.folder / "results.json", results)
        write_json(self.folder / "baselines.json", baselines)
        print(format_table(results))
        print(f"Predictions: {self.folder / 'predictions.jsonl'}\nResults: {self.folder / 'results.json'}")


def write_json(path: Path, value: object) -> None:
    """Write through a temporary file, so that an old file stays whole if writing fails."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    temporary.replace(path)


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """Write JSON lines in the same manner."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)
