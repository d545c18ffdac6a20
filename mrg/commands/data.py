"""`python -m mrg data check`: commands on data alone."""

from __future__ import annotations

from collections.abc import Sequence

from mrg.errors import UserError

USAGE = "usage: python -m mrg data check --config FILE (`python -m mrg data check --help` lists every key)"


def main(args: Sequence[str]) -> None:
    """Run the command that the first word names.

    Raises:
        UserError: If it names none.
    """
    if list(args) in (["-h"], ["--help"]):
        print(USAGE)
        return
    if list(args[:1]) != ["check"]:
        raise UserError(USAGE)
    from mrg.commands.data_check.command import run

    if run(args[1:]):
        raise SystemExit(1)
