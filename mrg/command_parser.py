"""The parser of Lightning's commands, with errors of three lines that name the command as it is typed."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

COMMANDS = ("fit", "validate", "test", "predict", "export")


class Parser(LightningArgumentParser):
    """A parser whose errors name the key and the reason, without the alternatives that were tried."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print usage, a tip and one line; exit with 2."""
        nested = re.search(r"Problem with given class_path '([^']+)':\s*(.+)", message)
        key = re.search(r'Parser key "([^"]+)"', message)
        if nested and key:
            message = f'Parser key "{key[1]}": {nested[1]}: {nested[2].strip()}'
        # jsonargparse calls a command by the name of the file that was run.
        parser = getattr(ex, "subcommand_parser", None) or self
        if parser.usage and not parser.prog.startswith("python -m mrg"):
            parser.prog = str(parser.usage).partition(" [")[0]
        super().error(" ".join(message.split()), ex)
        raise SystemExit(2)  # for type checkers, who do not know that the line above ends the program


def parser_settings(typed: str = "") -> dict[str, dict[str, Any]]:
    """What each command's parser is made with.

    Args:
        typed: The command that the user typed, where it takes the keys of `fit` and is not one of Lightning's.
    """
    usage = "python -m mrg {} [--config FILE] [--KEY VALUE ...]"
    return {name: {"parser_mode": "omegaconf+", "usage": usage.format(typed or name)} for name in COMMANDS}
