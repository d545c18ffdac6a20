"""The uncertainty of a test with `--samples`, in results.json and as a figure."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from mrg.callbacks.consensus import ConsensusReports, total_cost
from mrg.callbacks.results import ResultWriter
from mrg.files import write_json, write_text
from mrg.metrics.labels import label_together
from mrg.metrics.uncertainty import compare_choices, format_calibration, format_choices, format_cost, uncertainty
from mrg.modules.base import ReportModule
from mrg.modules.policy.ranks import gather

FIGURE = "uncertainty.svg"


class UncertaintyWriter(L.Callback):
    """Adds the uncertainty to the results after `ResultWriter` has written them.

    Args:
        folder: Folder of the results.
        reports: Callback that samples the reports.
    """

    def __init__(self, folder: Path, reports: ConsensusReports) -> None:
        self.folder, self.reports = folder, reports

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the uncertainty to results.json, draw its figure, and print both."""
        assert isinstance(pl_module, ReportModule)
        cost = total_cost(gather(self.reports.consensus.cost, trainer.world_size))
        writer = next(callback for callback in trainer.callbacks if isinstance(callback, ResultWriter))  # type: ignore[attr-defined]
        if not trainer.is_global_zero or writer.tested is None:
            return
        rows, results, labeler = writer.tested
        own = self.reports.consensus
        settings = {"choose": own.choose, "operating_point": own.operating_point, "seed": own.seed}
        results["uncertainty"] = {**self.reports.settings(trainer), **settings, "cost": cost}
        results["uncertainty"] |= uncertainty(rows, labeler, pl_module.margin, self.reports.calibration)
        reference = label_together(labeler, [row["target"] for row in rows])[0].cpu()
        choices = results["uncertainty"]["choices"] = compare_choices(rows, reference, pl_module.margin)
        write_json(self.folder / "results.json", results)
        from mrg.pages.uncertainty import uncertainty_figure  # matplotlib takes half a second

        write_text(self.folder / FIGURE, uncertainty_figure(results["uncertainty"]))
        print("Every choice from the same samples. To select one, use the table of `validate`, not this one.")
        print(format_choices(choices))
        print(format_calibration(results["uncertainty"]["scores"]), format_cost(cost, own.num_samples), sep="\n")
        print(f"Uncertainty: {self.folder / FIGURE}", flush=True)
