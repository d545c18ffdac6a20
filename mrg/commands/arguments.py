"""The parser of commands that are not Lightning's."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from mrg.errors import UserError, nearest


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, which names the option that was probably meant.

    Args:
        command: Name of the command.
        description: What it does.
        **settings: Further arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, command: str, description: str | None, **settings: Any) -> None:
        super().__init__(f"python -m mrg {command}", description=description, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise the error.

        Raises:
            UserError: Always.
        """
        unknown = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        hint = nearest(unknown, self._option_string_actions) if unknown.startswith("-") else ""
        raise UserError(f"{message}{hint or '.'} `{self.prog} --help` lists the arguments.")
