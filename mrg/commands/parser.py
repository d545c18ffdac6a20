"""The parser of Lightning's commands, short class names, and the only use of private parts of LightningCLI."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import sys
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from jsonargparse import get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from yaml import YAMLError

from mrg.commands import LIGHTNING
from mrg.commands.predict_images import parser as images_parser
from mrg.errors import UserError, nearest
from mrg.files import check_yaml, not_utf8
from mrg.modules.settings import moved_key

MODE = "omegaconf+"
"""Syntax of configuration files: YAML with interpolations across files."""

_load = get_loader("yaml")

KEYS = (
    "Every key below can also be set in a file that --config names. Those of a model and of data depend on the class: "
    "list them with `--model.help GRPOModule` and `--data.help IUXRayDataModule`. A key listed there as --data.root is "
    "data.init_args.root in a file; the command line takes both."
)
DESCRIPTIONS = {
    "fit": "Train the model that the configuration describes, in the folder of a run.",
    "validate": "Score the best checkpoint of a run on the validation split.",
    "test": "Score the best checkpoint of a run on the test split, next to baselines.",
    "predict": "Write reports without scoring them: for the test split, or for your own images.",
    "export": "Write the policy of a run, merged or as an adapter, for transformers, peft or vLLM.",
}
"""Command -> description; Lightning would print those of its trainer, abridged."""

MODULES = (
    "mrg.modules.grpo", "mrg.modules.sft", "mrg.modules.baselines", "mrg.datamodules.iu", "mrg.datamodules.mimic",
    "mrg.datamodules.table", "mrg.datamodules.demo", "mrg.datamodules.own_images", "mrg.datamodules.rexrank",
    "mrg.metrics.labelers.rules", "mrg.metrics.labelers.chexbert",
)  # fmt: skip
"""Modules whose classes can be named without their path, as in `model: GRPOModule`."""


class Parser(LightningArgumentParser):
    """A parser that knows short class names, and whose errors name the key and the reason only."""

    commands: Mapping[str, Any] = {}
    """Name -> parser of each command."""

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the parsers of commands."""
        action = super().add_subcommands(*args, **kwargs)
        self.commands = action.choices
        return action

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Import the modules whose classes have short names: jsonargparse finds a class by its name once it exists."""
        for module in MODULES:
            importlib.import_module(module)
        for mode in ("yaml", MODE):  # the parser of all commands, and that of each command
            set_loader(mode, load_yaml, (YAMLError,))
        return super().parse_args(*args, **kwargs)

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file.

        Raises:
            UserError: If it is not text in UTF-8; whatever else is wrong is reported by `error`.
        """
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UnicodeDecodeError as error:
            raise UserError(not_utf8(cfg_path, error)) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print usage, a tip and one line; exit with 2. jsonargparse also calls it for the keys of a nested class."""
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        options = [word[2:].partition("=")[0] for word in message.split() if word.startswith("--")]
        if isinstance(ex, KeyError):
            message += _suggestion(message.split("'")[-2], parser.keys())
        elif ex is None and options:
            message += _suggestion(options[0], parser.keys())
        elif self.exit_on_error and (sentence := _wrong_value(ex)):
            message = sentence
        elif place := _nested(ex):
            message = f"{message.splitlines()[0]} {place}"
        elif self.exit_on_error and (similar := nearest(value := message.split()[-1], _class_names())):
            message = f"{message.splitlines()[0]} There is no class {value}{similar}"
        if command := next((name for name in self.commands if f" {name}." in message), ""):
            # The parser of all commands finds that the configuration is missing.
            parser = self.commands[command]
            self.usage, message = parser.usage, message.replace(f" {command}.", " ")
            message += "; name a configuration, such as --config configs/iu.yaml"
        if parser.usage and not parser.prog.startswith("python -m mrg"):  # the file that was run
            parser.prog = str(parser.usage).partition(" [")[0]
            self.prog: str = parser.prog
        super().error(" ".join(message.split()), ex)
        raise SystemExit(2)  # for type checkers: the line above does not return

    def keys(self) -> list[str]:
        """Return the keys of the parser and of its commands; those of `predict` include the options for own images."""
        own = vars(images_parser().parse_args([])) if str(self.usage).startswith("python -m mrg predict") else {}
        return [*own, *(key for parser in (self, *self.commands.values()) for key, _ in parser.get_defaults().items())]

    def format_help(self) -> str:
        """Return the help; that of `predict` includes the options for your own images."""
        text: str = super().format_help()
        if str(self.usage).startswith("python -m mrg predict"):
            own = images_parser().format_help().partition("\n\n")[2]
            text = text.replace("\noptions:\n", f"\n{own}\noptions:\n", 1)
        return text


def load_yaml(text: str) -> Any:
    """Load YAML as jsonargparse does, see `check_yaml`.

    Raises:
        YAMLError: If it is not YAML, repeats a key, or grows too large by aliases.
    """
    check_yaml(text)
    return _load(text)


def _suggestion(key: str, known: Iterable[str]) -> str:
    """Suggest the new key for one that has moved, or a similar one; if not even its first part is known, that part."""
    if moved := moved_key(key):
        return moved
    heads = {name.partition(".")[0] for name in known}
    head = key.partition(".")[0]
    return nearest(key, known) if head in heads or head == key else nearest(head, heads)


def _wrong_value(error: BaseException | None) -> str:
    """Return setting, expected type or choices, and value of an error about a type; empty for any other error."""
    key, between, problem = "", "", ""
    for part in _chain(error):
        text, quoted = str(part), str(part).split("'")
        if isinstance(part, TypeError) and text.startswith('Parser key "'):
            key += between + text.split('"')[1]
            problem = str(part.__cause__)
        elif text.startswith("Problem with given class_path") and len(quoted) > 2:
            module, _, name = quoted[1].rpartition(".")
            is_group = dataclasses.is_dataclass(getattr(sys.modules.get(module), name, None))
            between = "." if is_group else ".init_args."
    expected: list[str] = []
    for line in problem.splitlines():
        kind = line.partition("Expected a ")[2].partition(". Got value: ")[0]
        if kind.startswith("typing.Literal["):
            expected += map(repr, ast.literal_eval(kind.removeprefix("typing.Literal")))
        elif kind.startswith("<class '"):
            expected.append(kind.split("'")[1].replace("NoneType", "null"))
        elif kind or line.lstrip().startswith("- "):
            return ""
    value = problem.partition("Got value: ")[2] or problem.partition("Given value: ")[2]
    *most, last = expected or [""]
    return f"Expected {key} to be {', '.join(most)}{' or ' * bool(most)}{last}, but got {value!r}." if last else ""


def _nested(error: BaseException | None) -> str:
    """Return class and reason of an error about a class in a configuration, the innermost one; empty otherwise."""
    for problem in reversed(list(_chain(error))):
        quoted, cause = str(problem).split("'"), problem.__cause__
        if len(quoted) > 2 and isinstance(cause, ArgumentError):
            return f"{quoted[1]}: {cause}"
        if len(quoted) > 2 and isinstance(cause, ImportError | AttributeError):
            return f"{quoted[1]}: {cause}{_new_path(quoted[1])}"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _new_path(class_path: str) -> str:
    """Say where a class of ours is that an older configuration names by another path."""
    name = class_path.rpartition(".")[2]
    owners = [module for title, module in list(sys.modules.items()) if title.startswith("mrg.")]
    found = {getattr(getattr(module, name, None), "__module__", "") for module in owners}
    path = next((f"{module}.{name}" for module in found if module.startswith("mrg.")), "")
    return f"; it is now {path}" if path and path != class_path else ""


def _class_names() -> list[str]:
    """Return the names of the classes in `MODULES`."""
    modules = [sys.modules[module] for module in MODULES if module in sys.modules]
    return [name for module in modules for name, kind in vars(module).items() if isinstance(kind, type)]


class CommandLine(LightningCLI):
    """LightningCLI without the parts that do not fit a run folder."""

    typed = ""
    """The command that the user typed, if it is another one with the keys of `fit`."""
    only_parses = False
    """Whether the configuration is read, but nothing is built or run."""

    def prepare(self) -> None:
        """Run before anything is built."""

    def before_instantiate_classes(self) -> None:
        """Prepare, unless the configuration is only read."""
        if not self.only_parses:
            self.prepare()

    def instantiate_classes(self) -> None:
        """Build trainer, model and data, unless the configuration is only read."""
        if not self.only_parses:
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if not self.only_parses:
            super()._run_subcommand(subcommand)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: a checkpoint must not override the configuration (Lightning issue 20801)."""


def parser_settings(typed: str = "") -> dict[str, dict[str, Any]]:
    """Return the arguments of each command's parser.

    Args:
        typed: The command that the user typed, if it is another one with the keys of `fit`.
    """
    usage = "python -m mrg {}{} [--config FILE] [--KEY VALUE ...]"
    return {
        name: {
            "parser_mode": MODE,
            "usage": usage.format(typed or name, "" if name == "fit" else " [RUN]"),
            "description": f"{DESCRIPTIONS[name]} {KEYS}",
        }
        for name in LIGHTNING
    }
