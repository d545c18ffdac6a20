"""The parser of Lightning's commands, with errors of three lines that name the command as it is typed."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from mrg.commands import LIGHTNING
from mrg.commands.predict_images import parser as images_parser
from mrg.errors import nearest
from mrg.modules.settings import moved_key

KEYS = (
    "Any key below can stand in the file that --config names. Those of a model and of data depend on the class, as in "
    "`--model.help mrg.modules.grpo.GRPOModule` and `--data.help mrg.datamodules.iu.IUXRayDataModule`; what is listed "
    "there as --data.root is data.init_args.root in a file, and either on the command line."
)
DESCRIPTIONS = {
    "fit": "Train what the configuration describes, in a run folder of its own.",
    "validate": "Score the best checkpoint of a run on the validation split.",
    "test": "Score the best checkpoint of a run on the test split, beside its baselines.",
    "predict": "Write reports without scoring them: of the test split, or of your own images.",
    "export": "Write a run's policy, merged or as an adapter, for transformers, peft or vLLM.",
}
"""Command -> what it does; Lightning's own sentences are of its trainer, and break off."""


class Parser(LightningArgumentParser):
    """A parser whose errors name the key and the reason, without the alternatives that were tried."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print usage, a tip and one line; exit with 2."""
        nested = re.search(r"Problem with given class_path '([^']+)':\s*(.+)", message)
        key = re.search(r'Parser key "([^"]+)"', message)
        if nested and key:
            message = f'Parser key "{key[1]}": {nested[1]}: {nested[2].strip()}'
        lacking = re.search(r"arguments are required: (\w+)\.", message)
        if lacking and lacking[1] in self._commands():
            # Found out by the parser of all commands, which names them all.
            self.usage = self._commands()[lacking[1]].usage
            message = message.replace(f"{lacking[1]}.", "") + "; name a configuration, such as --config configs/iu.yaml"
        # jsonargparse calls a command by the name of the file that was run.
        parser = getattr(ex, "subcommand_parser", None) or self
        if parser.usage and not parser.prog.startswith("python -m mrg"):
            parser.prog = str(parser.usage).partition(" [")[0]
        if not re.search("did you mean|it is now", message):  # a command's error comes by way of two parsers
            message += self._meant(message, nested[1] if nested else "")
        super().error(" ".join(message.split()), ex)
        raise SystemExit(2)  # for type checkers, who do not know that the line above ends the program

    def _meant(self, message: str, class_path: str) -> str:
        """Which key may have been meant by one that is not known."""
        if unknown := re.search(r"Option '([\w.]+)' is not accepted", message):
            return moved_key(unknown[1]) or nearest(unknown[1], _settings(class_path) if class_path else self._keys())
        if unknown := re.search(r"(?:[Uu]nrecognized arguments: --|does not accept option ')([\w.]+)", message):
            return moved_key(unknown[1]) or self._nearest_key(unknown[1])
        return ""

    def _nearest_key(self, key: str) -> str:
        """By the whole key, or where only its first part is known, by that."""
        head = key.partition(".")[0]
        heads = {name.partition(".")[0] for name in self._keys()}
        return nearest(key, self._keys()) if head in heads or head == key else nearest(head, heads)

    def _keys(self) -> list[str]:
        """The keys that any command of the parser takes."""
        return [action.dest for parser in (self, *self._commands().values()) for action in parser._actions]

    def _commands(self) -> Mapping[str, Any]:
        """The parsers of commands, by name."""
        return next((action.choices for action in self._actions if isinstance(action.choices, Mapping)), {})

    def format_help(self) -> str:
        """The usual help; of `predict` with the options that stand for settings of the data."""
        text: str = super().format_help()
        if str(self.usage).startswith("python -m mrg predict"):
            own = images_parser().format_help().partition("\n\n")[2]
            text = text.replace("\noptions:\n", f"\n{own}\noptions:\n", 1)
        return text


def _settings(class_path: str) -> list[str]:
    """What the constructor of a class takes, that of its bases included."""
    module, _, name = class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return [word for base in inspect.getmro(kind) for word in inspect.signature(base).parameters]


def parser_settings(typed: str = "") -> dict[str, dict[str, Any]]:
    """What each command's parser is made with.

    Args:
        typed: The command that the user typed, where it takes the keys of `fit` and is not one of Lightning's.
    """
    usage = "python -m mrg {} [--config FILE] [--KEY VALUE ...]"
    return {
        name: {
            "parser_mode": "omegaconf+",
            "usage": usage.format(typed or name),
            "description": f"{DESCRIPTIONS[name]} {KEYS}",
        }
        for name in LIGHTNING
    }
