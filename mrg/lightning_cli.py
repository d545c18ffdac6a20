"""Lightning's command line with a run folder, our exit lines and nothing hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from mrg.callbacks.results import ResultWriter
from mrg.cli import USAGE, UserError
from mrg.datamodules.base import ReportDataModule
from mrg.modules.base import ReportModule


class MrgCLI(LightningCLI):  # type: ignore[misc]
    """`fit`, `validate`, `test`, `predict`; every run has a folder of its own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's place."""
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--name", type=str, default="run", help="this run's folder in --runs")
        parser.add_argument("--overwrite", type=bool, default=False, help="write into a run folder that exists")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint must not override the configuration and the command line (Lightning issue 20801)."""

    def before_instantiate_classes(self) -> None:
        """Refuse to write over a finished run; place logs and checkpoints."""
        config = self.config[self.subcommand]
        folder = Path(config.runs) / config.name
        if (
            self.subcommand == "fit"
            and (folder / "config.yaml").exists()
            and not (config.overwrite or config.ckpt_path)
        ):
            raise UserError(
                f"Run folder {folder} holds a run already: choose another --name, or pass --overwrite true."
            )
        config.trainer.default_root_dir = str(folder)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add the run folder's logger and callbacks."""
        config = self.config[self.subcommand]
        folder = Path(config.runs) / config.name
        own: list[Any] = [ResultWriter(folder)]
        if self.subcommand == "fit":
            best = ModelCheckpoint(
                folder / "checkpoints", "best", monitor="val/mccs", mode="max", enable_version_counter=False
            )
            last = ModelCheckpoint(folder / "checkpoints", "last", enable_version_counter=False)
            own += [best, last]
        extra = kwargs.pop("callbacks", None) or []
        # An empty version puts metrics.csv and config.yaml into the run folder itself; only `fit` logs, so nothing is deleted.
        logger = CSVLogger(config.runs, name=config.name, version="") if self.subcommand == "fit" else False
        trainer = self._instantiate_trainer(self._get(self.config_init, "trainer", default={}), [*own, *extra])
        if self.subcommand == "fit":
            trainer.loggers = [logger]
        return trainer


def run(argv: list[str]) -> None:
    """Parse and run one command."""
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    if not argv:
        print(USAGE)
        raise SystemExit(2)
    MrgCLI(
        ReportModule,
        ReportDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={
            name: {"parser_mode": "omegaconf+", "usage": USAGE} for name in ("fit", "validate", "test", "predict")
        },
        args=argv,
    )
