"""`--samples`: reports chosen from samples in validate, test and predict, with the probabilities of their findings."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.files import parse_json, write_json
from mrg.metrics.calibration import METHODS, Calibration
from mrg.metrics.conditions import THIRTEEN, stated
from mrg.metrics.labels import label_together
from mrg.metrics.uncertainty import (
    compare_choices,
    count_table,
    format_calibration,
    format_choices,
    format_cost,
    thresholds_of,
    validated_scores,
)
from mrg.modules.base import ReportModule
from mrg.modules.consensus import Consensus
from mrg.modules.policy.ranks import gather
from mrg.run.checkpoint_file import fingerprint, policy_fingerprint

FILE = "calibration.json"

COMPARED = ("f1", "precision=.5", "precision=.8", "recall=.8")
"""Operating points whose samples `test` compares with those of every choice, if there is a calibration."""


class ConsensusReports(L.Callback):
    """Lets a module choose its reports from samples, and writes what the samples say about the findings.

    `validate` fits the calibration on the validation split and writes it into the run's folder as calibration.json;
    `test` and `predict` read it from there. `predict` needs none, unless there is an operating point.

    Args:
        folder: Folder of the run.
        num_samples: Number of samples per study.
        choose: One of `mrg.metrics.consensus.CHOICES`.
        temperature: Sampling temperature; None takes that of the module's rollouts, or 1.
        seed: Seed of the samples.
        operating_point: Thresholds by which a sample is chosen, `f1`, `precision=P` or `recall=R`; empty for `choose`.
        calibration: One of `mrg.metrics.calibration.METHODS`, or `none`.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        folder: Path,
        num_samples: int,
        choose: str,
        temperature: float | None,
        seed: int,
        operating_point: str,
        calibration: str,
    ) -> None:
        if calibration not in (*METHODS, "none"):
            raise UserError(f"Expected --calibration to be {', '.join(METHODS)} or none, but got {calibration!r}.")
        self.folder, self.temperature, self.method = folder, temperature, calibration
        options = 1.0 if temperature is None else temperature, seed, operating_point
        self.consensus = Consensus(num_samples, choose, *options)
        self.calibration: Calibration | None = None
        self.references: dict[str, list[int]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Pass the settings to the module.

        Raises:
            UserError: If the module does not sample.
        """
        assert isinstance(pl_module, ReportModule)
        if type(pl_module).write is not ReportModule.write:
            raise UserError(f"{type(pl_module).__name__} does not sample its reports: leave out --samples.")
        own = self.consensus
        if self.temperature is None:
            own.temperature = float(getattr(pl_module, "temperature", 1.0))
        own.labeler, own.think, own.margin = pl_module.labeler, pl_module.think, pl_module.margin
        file = self.folder / FILE
        own.calibrated = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""
        pl_module.consensus = own

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the calibration of the run if there is one; in `setup` the trainer does not know its checkpoint yet.

        Raises:
            UserError: If it was fitted to other samples, or is missing and there is an operating point.
        """
        path, own = self.folder / FILE, self.consensus
        remedy = f"run `validate --samples {own.num_samples}` of this run first, with the same --sample_temperature"
        if not path.is_file():
            if own.operating_point:
                raise UserError(f"--operating_point needs thresholds from the validation split: {remedy}.")
            return
        state = _read_state(path, remedy)
        given = self.settings(trainer)
        changed = [name for name, value in given.items() if state.get(name) != value]
        if changed:
            pairs = ", ".join(f"{name} {state.get(name)!r} (now {given[name]!r})" for name in changed)
            raise UserError(
                f"{path} was fitted to other samples: {pairs}. To replace it, {remedy}; or remove the file."
            )
        if state["calibration"]:
            self.calibration = Calibration(**state["calibration"])
        points = [*COMPARED, *([own.operating_point] if own.operating_point else [])]
        own.compared = {point: thresholds_of(state["counts"], point) for point in points}
        if own.operating_point:
            own.thresholds = own.compared[own.operating_point]

    on_predict_start = on_test_start

    def settings(self, trainer: L.Trainer) -> dict[str, Any]:
        """What a calibration depends on."""
        own = self.consensus
        path, policy = str(trainer.ckpt_path or ""), Path(str(trainer.lightning_module.source))
        name = str(getattr(own.labeler, "name", type(own.labeler).__name__))
        settings = {"num_samples": own.num_samples, "temperature": own.temperature, "labeler": name}
        as_it_is = policy_fingerprint(policy) if policy.is_dir() else ""
        return {**settings, "fingerprint": fingerprint(Path(path)) if path else as_it_is}

    def probabilities(self, shares: Tensor) -> Tensor:
        """Calibrated probabilities (M, 13) of shares (M, 13); the shares themselves without a calibration."""
        return shares if self.calibration is None else self.calibration(shares)

    def _describe(self, rows: list[dict[str, Any]]) -> None:
        """Add what the samples say to records of studies."""
        for row in rows:
            note = self.consensus.notes.get(row["id"])
            if note is None:
                continue
            row.update(note)
            values = self.probabilities(torch.tensor([list(note["shares"].values())], dtype=torch.float64))[0]
            row["probabilities"] = dict(zip(THIRTEEN, values.tolist(), strict=True))

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget earlier samples."""
        self.consensus.reset()
        self.references = {}

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Keep the reference labels of a batch."""
        assert isinstance(pl_module, ReportModule)
        if batch.counts:
            labels = label_together(pl_module.labeler, batch.target)[0]
            self.references.update(zip(batch.study_id, labels.tolist(), strict=True))

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Add what the samples say to the records of a batch before they are written."""
        assert isinstance(pl_module, ReportModule)
        self._describe(pl_module.predictions[-len(batch) :])

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Add what the samples say to the records of a batch."""
        self._describe(outputs)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the choices, fit the calibration and write it."""
        assert isinstance(pl_module, ReportModule)
        parts = gather((self.consensus.notes, self.references, self.consensus.cost), trainer.world_size)
        cost = total_cost([part[2] for part in parts])
        if not trainer.is_global_zero:
            return
        notes = {name: note for part in parts for name, note in part[0].items()}
        labels = {name: row for part in parts for name, row in part[1].items()}
        names = [study.id for study in trainer.datamodule.splits["val"] if study.id in labels]  # type: ignore[attr-defined]
        shares = torch.tensor([list(notes[name]["shares"].values()) for name in names], dtype=torch.float64)
        reference = torch.tensor([labels[name] for name in names])
        found, num_samples = stated(reference)[:, : len(THIRTEEN)], self.consensus.num_samples
        fitted = None if self.method == "none" else Calibration.fit(shares, found, num_samples, self.method)
        choices = compare_choices([notes[name] for name in names], reference, pl_module.margin)
        scores = validated_scores(shares, found, num_samples, self.method)
        state = {**self.settings(trainer), "num_studies": len(names), "choices": choices, "scores": scores}
        state |= {"cost": cost, "counts": count_table(shares, found, num_samples)}
        state |= {"calibration": None if fitted is None else dataclasses.asdict(fitted)}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / FILE, state)
        print(f"{format_choices(choices)}\n{format_calibration(scores)}\n{format_cost(cost, num_samples)}")
        print(f"Calibration: {self.folder / FILE}", flush=True)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the cost."""
        cost = total_cost(gather(self.consensus.cost, trainer.world_size))
        if trainer.is_global_zero and cost["studies"]:
            print(format_cost(cost, self.consensus.num_samples), flush=True)


def _read_state(path: Path, remedy: str) -> dict[str, Any]:
    try:
        state = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {remedy}.") from None
    if not isinstance(state, dict) or not {"calibration", "counts"} <= set(state):
        raise UserError(f"Expected {path} to contain `calibration` and `counts`: {remedy}.")
    return state


def total_cost(costs: list[Mapping[str, float]]) -> dict[str, float]:
    """Sums over ranks; seconds are those of the slowest."""
    return {k: max(c[k] for c in costs) if "seconds" in k else sum(c[k] for c in costs) for k in costs[0]}
