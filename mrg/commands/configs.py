"""`python -m mrg configs`, and configurations by name: `--config iu` works from any folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mrg.commands.arguments import OneLineParser
from mrg.errors import NotFoundError, UserError, nearest

_CHECKOUT = Path(__file__).parents[2] / "configs"
CONFIGS = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).parents[1] / "configs"
"""Folder of the shipped configurations: that of the checkout, or the copy in an installed package."""
OPTIONS = ("-c", "--config")


def names() -> list[str]:
    """Names of the shipped configurations, such as `iu` and `memory/qlora`: those for whole runs first."""
    found = (path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))
    return sorted(found, key=lambda name: ("/" in name, name))


def purpose(name: str) -> str:
    """What a configuration is for: the first sentence of its comment."""
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line[1:].strip() for line in lines[: _first(lines)])
    return re.split(r"[.:] (?=Pass |python )|(?<=\w)[.] |[.:]$", comment, maxsplit=1)[0]


def _first(lines: Sequence[str]) -> int:
    """Index of the first line that is not a comment."""
    return next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))


def resolve(word: str) -> str:
    """Path of a configuration: that of a shipped one for its name; what is clearly a path is left to the parser.

    Args:
        word: Value of `--config`: a path, or a name such as `iu`, `iu.yaml`, `configs/iu.yaml` or `memory/qlora`.

    Raises:
        NotFoundError: If it looks like a name, and is neither a file nor shipped.
    """
    name = word.removesuffix(".yaml").removeprefix("configs/")
    if Path(word).is_file() or not word:
        return word
    if name in names():
        return str(CONFIGS / f"{name}.yaml")
    if str(Path(name).parent) not in {str(Path(known).parent) for known in names()}:
        return word
    raise NotFoundError(
        f"Expected --config to be a file or the name of a shipped configuration, but got {word!r}"
        f"{nearest(name, names()) or '.'} `python -m mrg configs` lists them."
    )


def resolve_all(args: Sequence[str]) -> list[str]:
    """Arguments of a command with the shipped configurations that they name as paths.

    Args:
        args: Arguments.

    Raises:
        NotFoundError: If a configuration is neither a file nor shipped.
    """
    resolved: list[str] = []
    for word in args:
        option, is_set, value = word.partition("=")
        if resolved and args[len(resolved) - 1] in OPTIONS and not word.startswith("-"):
            resolved.append(resolve(word))
        elif option in OPTIONS and is_set:
            resolved.append(f"{option}={resolve(value)}")
        else:
            resolved.append(word)
    return resolved


def main(args: Sequence[str]) -> None:
    """`python -m mrg configs`: list the shipped configurations, or copy some.

    Args:
        args: Arguments after the name of the command.

    Raises:
        UserError: If a configuration does not exist, or a copy would replace a file.
    """
    parser = OneLineParser("configs", "List the configurations that come with mrg, or copy some of them.")
    parser.add_argument("--copy", nargs="+", metavar="NAME", help="copy these into the current folder, to edit them")
    options = parser.parse_args(list(args))
    if not options.copy:
        width = max(map(len, names()))
        for name in names():
            print(f"{name:<{width}}  {purpose(name)}")
        print(
            "\nUse one by its name: python -m mrg fit --config iu. Copy one to edit it: python -m mrg configs --copy iu"
        )
        return
    files = [Path(resolve(name)) for name in options.copy]
    targets = [Path(file.name) for file in files]
    if taken := [str(target) for target in targets if target.exists()]:
        raise UserError(f"A copy would replace {taken[0]}: remove or rename it, or copy into another folder.")
    for file, target in zip(files, targets, strict=True):
        target.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        print(target)
