"""Lightning's commands in the folder of a run: which checkpoint they use, what they write, and what they refuse."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ActionConfigFile, set_parsing_settings
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_only

import mrg
from mrg.callbacks.checkpoint import Checkpoints
from mrg.callbacks.gallery import GalleryWriter
from mrg.callbacks.metrics_file import MetricsFile
from mrg.callbacks.preemption import EndTogether
from mrg.callbacks.progress import ProgressLine
from mrg.callbacks.results import ResultWriter
from mrg.callbacks.run_page import RunPage
from mrg.commands.configuration import check_limits, replaced_lists
from mrg.commands.export import Trainer
from mrg.commands.parser import CommandLine, Parser, parser_settings
from mrg.commands.sampling import add_sampling_options, sampling_callbacks
from mrg.datamodules.base import ReportDataModule
from mrg.errors import UserError, install
from mrg.files import read_config
from mrg.log import log
from mrg.modules.base import ReportModule
from mrg.modules.policy.precision import check_precision
from mrg.modules.settings import check_no_moved_keys
from mrg.run.checkpoint_choice import best_of, to_resume, to_use
from mrg.run.checkpoints import CheckpointFolder
from mrg.run.folder import (
    check_inside,
    check_is_of,
    check_not_moved,
    check_writable,
    has_progress,
    make_room,
    make_run_folder,
)
from mrg.run.lock import lock
from mrg.run.resume import KEPT, changed_settings, describe_changes
from mrg.run.start import start_from

LOGGERS = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}
"""Loggers of Lightning that need a package -> its name, which is also that of our extra."""


class MrgCLI(CommandLine):
    """`fit`, `validate`, `test`, `predict` and `export`, each in the folder of a run."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's commands and `export`."""
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Create our parser with Lightning's options."""
        parser = Parser(**{"dump_header": [f"mrg=={mrg.__version__}, lightning=={L.__version__}"], **kwargs})
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="configuration file in YAML")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options for the folder of the run and its checkpoints."""
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--name", type=str, default="run", help="name of the run, its folder in --runs")
        parser.add_argument(
            "--shared",
            type=bool,
            default=False,
            help="create the run's folder with the permissions of the umask, so that others can read it; otherwise "
            "only its owner can",
        )
        parser.add_argument(
            "--into", type=str, default="", help="subfolder of the run for what test and predict write about other data"
        )
        parser.add_argument(
            "--starting_policy",
            type=bool,
            default=False,
            help="outside of fit: use the policy that the configuration names as it is, in a folder without a run",
        )
        parser.add_argument("--overwrite", type=bool, default=False, help="start over in a folder that contains a run")
        parser.add_argument("--monitor", type=str, default="val/mccs", help="score that chooses the best checkpoint")
        parser.add_argument(
            "--from", type=str, default="", help="fit: start from the policy of this run, or this policy"
        )
        parser.add_argument(
            "--resume",
            type=str,
            default="",
            help="auto: resume the newest intact checkpoint, or an unfinished test or predict; or a path",
        )
        parser.add_argument("--save_every", type=PositiveInt, default=50, help="rounds between two checkpoints")
        parser.add_argument("--keep", type=PositiveInt, default=2, help="recent checkpoints to keep besides the best")
        add_sampling_options(parser)
        parser.add_class_arguments(GalleryWriter, "gallery")

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        config = self.config[self.subcommand]
        return Path(str(config.runs), str(config.name))

    def prepare(self) -> None:
        """Refuse to overwrite a run; outside of `fit`, use the best checkpoint of the run unless one is named."""
        config = self.config[self.subcommand]
        check_inside(str(config.name), "--name", "--runs")
        if config.into:
            check_inside(str(config.into), "--into", "the run's folder")
        config.trainer.default_root_dir = str(self.folder)
        files = [Path(str(path)) for path in config.config or []]
        check_not_moved(files, self.folder)
        for line in replaced_lists(files):
            log.warning(line)
        check_limits(str(self.subcommand), config.trainer)
        if config.trainer.precision is not None:
            check_precision(config.trainer.precision)  # Lightning would replace 16-mixed on a CPU
        if self.subcommand != "fit" and config.resume not in ("", "auto"):
            raise UserError(f"Expected --resume of {self.subcommand} to be auto, but got {config.resume!r}.")
        if not _class(str(config.model.class_path)).trained:
            self._prepare_baseline(config)
            return
        if self.subcommand == "fit":
            for line in start_from(config):
                log.warning(line)
            _need_loggers(config.trainer.logger)
            self._prepare_fit(config)
            return
        if self.subcommand == "test":
            config.verbose = False  # our table replaces Lightning's
        self.save_config_callback = None  # config.yaml is the configuration that the run was trained with
        if config.ckpt_path is None:
            best = best_of(self.folder, str(config.model.init_args.policy), config.starting_policy)
            if best is not None:
                check_is_of(files, self.folder)
            config.ckpt_path = None if best is None else str(best)
        if config.ckpt_path is not None:
            strategy = str(getattr(config.trainer.strategy, "class_path", ""))
            to_use(Path(config.ckpt_path), sharding=strategy.endswith("FSDP2"))
        log.info(f"{self.subcommand}: {config.ckpt_path or config.model.init_args.policy}")

    def _prepare_baseline(self, config: Any) -> None:
        """Keep a baseline, which is not trained, out of the folders and checkpoints of trained runs."""
        name = str(config.model.class_path)
        if self.subcommand in ("fit", "export"):
            raise UserError(f"{name} is a baseline, which is not trained: run `test`, `validate` or `predict`.")
        if (self.folder / "config.yaml").is_file():
            raise UserError(f"{self.folder} contains a trained run: choose another --name for the baseline.")
        if self.subcommand == "test":
            config.verbose = False
        self.save_config_callback = config.ckpt_path = None
        log.info(f"{self.subcommand}: {name}")

    def _prepare_fit(self, config: Any) -> None:
        """Allow `fit` in the folder of a run only to resume it, or to start over if that was asked for."""
        make_run_folder(self.folder, bool(config.shared))
        check_writable(self.folder)
        if (self.folder / "checkpoints").exists():
            check_writable(self.folder / "checkpoints")
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.lock = lock(self.folder)
        files = CheckpointFolder(self.folder / "checkpoints")
        if config.resume and config.ckpt_path:
            raise UserError("--resume and --ckpt_path are mutually exclusive: both name the checkpoint to resume from.")
        if config.resume and config.overwrite:
            raise UserError("--resume and --overwrite are mutually exclusive.")
        setting = "--resume" if config.resume else "--ckpt_path"
        path = to_resume(files, str(config.resume or config.ckpt_path or ""), setting)
        config.ckpt_path = None if path is None else str(path)
        if path is not None:
            self._keep_settings(config, path.resolve().parents[1] / "config.yaml")
        if path is not None and path.resolve().parent == files.path.resolve():
            return
        auto = config.resume == "auto"
        if has_progress(self.folder) and not (config.overwrite or auto):
            raise UserError(
                f"{self.folder} already contains a run. Resume it with --resume auto, choose another --name, or start "
                "over with --overwrite true."
            )
        if auto and path is None:
            log.info(f"No checkpoint in {files.path}: the run starts from the beginning.")
        elif (self.folder / "config.yaml").exists() and not config.overwrite:
            log.info(f"The run in {self.folder} ended before its first checkpoint: it starts from the beginning.")

    def _keep_settings(self, config: Any, file: Path) -> None:
        """Log what has changed since a checkpoint was written, and restore the settings that it determines.

        Args:
            config: Configuration of this run.
            file: Configuration of the run that wrote the checkpoint; nothing is compared if it does not exist.
        """
        if not file.is_file():
            return
        given = yaml.safe_load(self.parser.commands[self.subcommand].dump(config, skip_none=False))
        saved = read_config(file)
        check_no_moved_keys(saved, file)
        changed = changed_settings(saved, given)
        for key in KEPT:
            if key in changed:
                config[key] = changed[key][0]
        for line in describe_changes(changed, file):
            log.info(line)

    def _begin(self) -> None:
        """Make room for a run that starts from the beginning; until then nothing of an earlier run is changed."""
        make_room(self.folder, self.overwrite)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with the callbacks and loggers of the run."""
        config, built = self.config[self.subcommand], self.config_init[self.subcommand]
        into = "" if self.subcommand == "fit" else str(config.into)
        writer = ResultWriter(self.folder / into, bool(config.resume), str(config.ckpt_path or ""))
        before, after = sampling_callbacks(config, str(self.subcommand), self.folder, self.folder / into)
        own: list[Any] = [*before, writer, *after, built.gallery, *(kwargs.pop("callbacks", None) or [])]
        callbacks = _as_list(built.trainer.callbacks)
        if built.trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            own.append(ProgressLine())
        own += [EndTogether(self.folder), RunPage(self.folder)]
        options: dict[str, Any] = {"enable_model_summary": built.trainer.enable_model_summary or False, **kwargs}
        if self.subcommand == "fit":
            own.append(Checkpoints(self.folder, config.monitor, config.save_every, config.keep, self._begin))
            options |= {"logger": [MetricsFile(self.folder), *_as_list(built.trainer.logger)]}
            options |= {"callbacks": [*callbacks, *own]}
            # The saved configuration describes how to train such a run, not how this one was resumed: `test` with it
            # uses the best checkpoint, and `fit` does not start over.
            self.overwrite = bool(config.overwrite)
            config.resume, config.ckpt_path, config.overwrite = "", None, False
        else:
            if self.subcommand in ("test", "predict"):
                make_run_folder(self.folder, bool(config.shared))
            options |= {"logger": False, "callbacks": own}  # the configured ones are for training
        try:
            trainer = super().instantiate_trainer(**options)
            environment = getattr(trainer.strategy, "cluster_environment", None)
            if environment is not None:  # Lightning would check it when training starts
                environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
            return trainer
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"The trainer's settings do not fit this machine: {' '.join(str(error).split())}") from None


class RunConfig(SaveConfigCallback):
    """Writes config.yaml when training starts, so that a run that is refused leaves the folder as it was."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do nothing yet."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        super().setup(trainer, pl_module, "fit")


def _need_loggers(given: Any) -> None:
    """Name the missing package of a logger before Lightning fails to build it."""
    for logger in _as_list(given):
        name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        package = LOGGERS.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f"{name} needs the package {package}: {install(package)}")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _class(path: str) -> type[ReportModule]:
    module, _, name = path.rpartition(".")
    found: type[ReportModule] = getattr(importlib.import_module(module), name)
    return found


def quiet() -> None:
    """Silence messages that a user can do nothing about; Lightning sets its levels on import."""
    from transformers.utils import logging as transformers_logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It recommends a package for a kernel without gradients, see `mrg.modules.policy.quantization`.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    for text in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*treespec.*",
        r".*module\(s\) in eval mode.*",  # the frozen vision tower
        ".*LightningCLI's args parameter.*",
        ".*exists and is not empty.*",
        ".*dirpath has changed.*",
        ".*GPU available but not used.*",
        ".*gradient_checkpointing.*",
        ".*callbacks used to create the checkpoint.*",
        ".*your dataloader is not resumable.*",  # it is, see `StudySampler`
    ):
        warnings.filterwarnings("ignore", text)


def _hang_up(number: int, frame: Any) -> None:
    """Treat a terminal that closes like SIGTERM; while `fit` trains, `EndSignal` handles both."""
    signal.raise_signal(signal.SIGTERM)


def run(argv: list[str], kind: type[MrgCLI] = MrgCLI) -> MrgCLI:
    """Parse the arguments and run one command; returns the command line with its configuration."""
    quiet()
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _hang_up)
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
        # Lightning would exit with 0, as if there were a result. `fit` raises `Preempted` instead.
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"mrg: SIGTERM ended `{argv[0]}` before it was done.", file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as stop:
        # After Ctrl-C Lightning exits with 1, as if something had failed; `main` uses the usual code.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
