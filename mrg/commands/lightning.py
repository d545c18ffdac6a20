"""Lightning's command line with a run folder around it, and errors of three lines."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ActionConfigFile, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_only

import mrg
from mrg.callbacks.checkpoint import Checkpoints
from mrg.callbacks.gallery import GalleryWriter
from mrg.callbacks.metrics_file import MetricsFile
from mrg.callbacks.progress import ProgressLine
from mrg.callbacks.results import ResultWriter
from mrg.callbacks.run_page import RunPage
from mrg.commands.export import Trainer
from mrg.commands.parser import Parser, parser_settings
from mrg.datamodules.base import ReportDataModule
from mrg.errors import UserError
from mrg.modules.base import ReportModule
from mrg.modules.ranks import say
from mrg.run.changed_settings import KEPT, changed_settings, remarks
from mrg.run.checkpoint_choice import best_of, to_resume, to_use
from mrg.run.checkpoints import CheckpointFolder
from mrg.run.folder import check_not_moved, check_writable, lock, make_room

LOGGERS = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}
"""Lightning's loggers beside metrics.csv -> the package that each needs, which is also the name of our extra."""


class MrgCLI(LightningCLI):
    """`fit`, `validate`, `test`, `predict`, `export`; every run has a folder of its own."""

    typed = ""
    """The command that the user typed, where another takes the keys of `fit`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, and `export`."""
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Our parser with Lightning's own options."""
        parser = Parser(**{"dump_header": [f"mrg=={mrg.__version__}, lightning=={L.__version__}"], **kwargs})
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="a configuration file in YAML")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's place, and by what its best checkpoint is chosen."""
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--name", type=str, default="run", help="this run's folder in --runs")
        parser.add_argument(
            "--into", type=str, default="", help="folder in the run's for what test and predict write about other data"
        )
        parser.add_argument("--overwrite", type=bool, default=False, help="train into a run folder that exists")
        parser.add_argument(
            "--monitor", type=str, default="val/mccs", help="score of the best checkpoint; a loss is minimised"
        )
        parser.add_argument(
            "--resume", type=str, default="", help="auto: from the run's newest whole checkpoint, if any; or its path"
        )
        parser.add_argument("--save_every", type=int, default=50, help="rounds from one checkpoint to the next")
        parser.add_argument("--keep", type=int, default=2, help="last checkpoints that are kept beside the best")
        parser.add_class_arguments(GalleryWriter, "gallery")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint must not override the configuration and the command line (Lightning issue 20801)."""

    @property
    def folder(self) -> Path:
        """This run's folder."""
        config = self.config[self.subcommand]
        return Path(str(config.runs), str(config.name))

    def before_instantiate_classes(self) -> None:
        """Refuse to write over a run; outside of `fit`, take the run's best checkpoint unless one is named."""
        config = self.config[self.subcommand]
        config.trainer.default_root_dir = str(self.folder)
        check_not_moved([Path(str(path)) for path in config.config or []], self.folder)
        if not _class(str(config.model.class_path)).trained:
            self._prepare_baseline(config)
            return
        if self.subcommand == "fit":
            _need_loggers(config.trainer.logger)
            self._prepare_fit(config)
            return
        if self.subcommand == "test":
            config.verbose = False  # our table says more
        self.save_config_callback = None  # the run's configuration is the one it was trained with
        if config.ckpt_path is None:
            best = best_of(self.folder, str(config.model.init_args.policy))
            config.ckpt_path = None if best is None else str(best)
        if config.ckpt_path is not None:
            strategy = str(getattr(config.trainer.strategy, "class_path", ""))
            to_use(Path(config.ckpt_path), sharding=strategy.endswith("FSDP2"))
        say(f"{self.subcommand}: {config.ckpt_path or config.model.init_args.policy}")

    def _prepare_baseline(self, config: Any) -> None:
        """Keep what is not trained out of the folders of runs that are, and away from their checkpoints."""
        name = str(config.model.class_path)
        if self.subcommand in ("fit", "export"):
            raise UserError(f"{name} is a baseline, which is not trained: run `test`, `validate` or `predict`.")
        if (self.folder / "config.yaml").is_file():
            raise UserError(f"Run folder {self.folder} holds a trained run: choose another --name for the baseline.")
        if self.subcommand == "test":
            config.verbose = False
        self.save_config_callback = config.ckpt_path = None
        say(f"{self.subcommand}: {name}")

    def _prepare_fit(self, config: Any) -> None:
        """Let `fit` into a run folder only to resume its own checkpoint, or where what is in it may go."""
        check_writable(self.folder)
        if (self.folder / "checkpoints").exists():
            check_writable(self.folder / "checkpoints")
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.lock = lock(self.folder)
        files = CheckpointFolder(self.folder / "checkpoints")
        if config.resume and config.ckpt_path:
            raise UserError("--resume and --ckpt_path both name a checkpoint to go on from: pass one of them.")
        if config.resume and config.overwrite:
            raise UserError("--resume goes on with a run and --overwrite true begins it anew: pass one of them.")
        setting = "--resume" if config.resume else "--ckpt_path"
        path = to_resume(files, str(config.resume or config.ckpt_path or ""), setting)
        config.ckpt_path = None if path is None else str(path)
        if path is not None:
            self._keep_settings(config, path.resolve().parents[1] / "config.yaml")
        resumes = path is not None and path.resolve().parent == files.path.resolve()
        if resumes:
            return
        auto = config.resume == "auto"
        if (self.folder / "config.yaml").exists() and not (config.overwrite or auto):
            raise UserError(
                f"Run folder {self.folder} holds a run already: go on with --resume auto, choose another --name, or "
                "pass --overwrite true."
            )
        if auto and path is None:
            say(f"No checkpoint in {files.path}: the run starts at its beginning.")

    def _keep_settings(self, config: Any, file: Path) -> None:
        """Say what has changed since a checkpoint was written; what it keeps is set back, so that config.yaml is true.

        Args:
            config: Of this run.
            file: The configuration of the run that wrote the checkpoint; without it nothing is known.
        """
        if not file.is_file():
            return
        given = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False))
        changed = changed_settings(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, given)
        for key in KEPT:
            if key in changed:
                config[key] = changed[key][0]
        for line in remarks(changed, file):
            say(line)

    def _begin(self) -> None:
        """Make room for a run that starts anew; what is refused before leaves a run as it was."""
        make_room(self.folder, self.overwrite)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add the run folder's logger and callbacks."""
        into = "" if self.subcommand == "fit" else str(self.config[self.subcommand].into)
        own: list[Any] = [ResultWriter(self.folder / into), self._get(self.config_init, "gallery")]
        own += kwargs.pop("callbacks", None) or []
        trainer = dict(self._get(self.config_init, "trainer", default={}))
        given = trainer.get("callbacks") or []
        callbacks = given if isinstance(given, list) else [given]
        if trainer.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            own.append(ProgressLine())
        own.append(RunPage(self.folder))
        if trainer.get("enable_model_summary") is None:
            trainer["enable_model_summary"] = False
        if self.subcommand != "fit":
            trainer["logger"], trainer["callbacks"] = False, None  # what steers training has no say in a test
            return self._instantiate_trainer(trainer, own)
        config = self.config[self.subcommand]
        own.append(Checkpoints(self.folder, config.monitor, config.save_every, config.keep, self._begin))
        loggers = trainer.get("logger") or []
        trainer["logger"] = [MetricsFile(self.folder), *(loggers if isinstance(loggers, list) else [loggers])]
        # What the run is saved with: who trains or tests by it later means the best checkpoint, or says otherwise.
        self.overwrite = bool(config.overwrite)
        config.resume, config.ckpt_path, config.overwrite = "", None, False
        return self._instantiate_trainer(trainer, own)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> L.Trainer:
        """Say in one line what Lightning says of devices, nodes and precision that do not fit."""
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
            environment = getattr(trainer.strategy, "cluster_environment", None)
            if environment is not None:  # Lightning asks it when training starts
                environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
            return trainer
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"The trainer's settings do not fit this machine: {' '.join(str(error).split())}") from None


class RunConfig(SaveConfigCallback):
    """Writes config.yaml when training starts: what is refused before leaves a run as it was."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Not yet."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it."""
        super().setup(trainer, pl_module, "fit")


def _need_loggers(given: Any) -> None:
    """Say which package a logger lacks before Lightning fails to build it."""
    for logger in given if isinstance(given, list) else [given]:
        name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        package = LOGGERS.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f"{name} needs the package {package}: pip install 'mrg[{package}]'")


def _class(path: str) -> type[ReportModule]:
    module, _, name = path.rpartition(".")
    found: type[ReportModule] = getattr(importlib.import_module(module), name)
    return found


def quiet() -> None:
    """Silence what a user can do nothing about; Lightning sets its levels on import."""
    from transformers.utils import logging as transformers_logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It misses a package for a kernel of its own that cannot be trained through, see `quantization.prepare_quantized`.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    for text in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*treespec.*",
        ".*LightningCLI's args parameter.*",
        ".*exists and is not empty.*",
        ".*dirpath has changed.*",
        ".*GPU available but not used.*",
        ".*gradient_checkpointing.*",
        ".*callbacks used to create the checkpoint.*",
        ".*your dataloader is not resumable.*",  # it is, by `StudySampler`
    ):
        warnings.filterwarnings("ignore", text)


def run(argv: list[str], kind: type[MrgCLI] = MrgCLI) -> MrgCLI:
    """Parse and run one command."""
    quiet()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    try:
        return kind(
            ReportModule,
            ReportDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs=parser_settings(kind.typed),
            args=argv,
        )
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from None
    except SIGTERMException:
        # Lightning would end with 0, as if there were a result. A round of `fit` ends otherwise, see `Preempted`.
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"mrg: SIGTERM ended `{argv[0]}` before it was done.", file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as stop:
        # Lightning's end after Ctrl-C, with 1 as if something had failed; `main` gives the code that is usual.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
