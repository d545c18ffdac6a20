"""`python -m mrg data check`: usage, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence

from mrg.errors import UserError

USAGE = "usage: python -m mrg data check --config FILE (`python -m mrg data check --help` lists every key)"


def main(args: Sequence[str]) -> None:
    """Run `data check`; exits with 1 if there are errors.

    Raises:
        UserError: If the first argument is not `check`, or the data set cannot be checked.
    """
    if list(args) in (["-h"], ["--help"]):
        print(USAGE)
        return
    if list(args[:1]) != ["check"]:
        raise UserError(USAGE)
    from mrg.commands.data_check.command import check

    if check(args[1:]):
        raise SystemExit(1)
