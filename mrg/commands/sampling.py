"""The options by which `validate`, `test` and `predict` choose reports from samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Optional

from jsonargparse.typing import PositiveInt
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from mrg.callbacks.consensus import ConsensusReports
from mrg.callbacks.uncertainty import UncertaintyWriter
from mrg.errors import UserError

Choice = Optional[Literal["mccs", "ce_f1", "likelihood", "medoid"]]  # noqa: UP045
Method = Literal["platt", "temperature", "isotonic", "none"]


def add_sampling_options(parser: LightningArgumentParser) -> None:
    """Add the options to the parser of a command."""
    parser.add_argument(
        "--samples", type=PositiveInt, default=1, help="outside of fit: samples per study; 1 decodes greedily"
    )
    parser.add_argument("--choose", type=Choice, default=None, help="choice of a report from --samples (default: mccs)")
    parser.add_argument(
        "--sample_temperature",
        type=Optional[float],  # noqa: UP045
        default=None,
        help="temperature of --samples (default: that of the rollouts, or 1)",
    )
    parser.add_argument(
        "--operating_point",
        type=str,
        default="",
        help="f1, precision=P or recall=R: choose samples by thresholds",
    )
    parser.add_argument(
        "--calibration",
        type=Method,
        default="platt",
        help="calibration that validate fits to the probabilities",
    )


def sampling_callbacks(config: Any, command: str, folder: Path, into: Path) -> tuple[list[Callback], list[Callback]]:
    """Build the callbacks that sample, and those that write what the samples say after the results.

    Args:
        config: Configuration of the command.
        command: Name of the command.
        folder: Folder of the run.
        into: Folder of the results.

    Raises:
        UserError: If the options contradict each other, or the command does not sample.
    """
    choice = config.choose is not None or config.operating_point or config.sample_temperature is not None
    if command == "fit":
        if config.samples > 1 or choice:
            raise UserError("Expected --samples and --choose with validate, test or predict: fit decodes greedily.")
        return [], []
    if config.choose is not None and config.operating_point:
        raise UserError("--choose and --operating_point are mutually exclusive: both choose the report.")
    if config.samples == 1 and not choice:
        return [], []
    if command == "export":
        raise UserError("--samples is for validate, test and predict: export writes the policy.")
    reports = ConsensusReports(
        folder,
        config.samples,
        config.choose or "mccs",
        config.sample_temperature,
        int(config.seed_everything or 0),
        config.operating_point,
        config.calibration,
    )
    return [reports], [UncertaintyWriter(into, reports)]
