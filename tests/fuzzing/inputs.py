"""Inputs that resemble what a parser reads, and what holds for all parsers."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mrg.errors import UserError

_HELD = tempfile.TemporaryDirectory(prefix="mrg-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)

FOLDER = Path(_HELD.name)


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser: inputs, a function that fails where one breaks a property, and the number of inputs in the suite."""

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    quick: int = 1000


def pieces(*words: str) -> st.SearchStrategy[str]:
    """Texts of words that mean something to a parser, and of any characters between them."""
    part = st.sampled_from(words) | st.text(max_size=4)
    return st.lists(part, max_size=14).map("".join)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Copies with some bytes changed, removed, repeated or cut off at the end."""
    place = st.integers(0, len(whole) - 1)
    edit = st.tuples(st.sampled_from(["set", "set", "drop", "copy", "cut"]), place, st.integers(0, 255))

    def apply(edits: list[tuple[str, int, int]]) -> bytes:
        content = bytearray(whole)
        for kind, where, value in edits:
            if kind == "drop":
                del content[where : where + value % 16]
            elif kind == "copy":
                content[where:where] = content[max(0, where - value) : where]
            elif kind == "cut":
                del content[where:]
            elif where < len(content):
                content[where] = value
        return bytes(content)

    return st.lists(edit, max_size=8).map(apply)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["nan", "a.png"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def objects(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Objects in which each field has a usual value, any other, or is missing."""
    usual = {key: st.just(value) | VALUES for key, value in fields.items()}
    return st.fixed_dictionaries({}, optional=usual)


def ours(read: Callable[[], Any], *errors: type[Exception]) -> Any:
    """The value, or None for an error of one line that a user may read."""
    try:
        return read()
    except (UserError, *errors) as error:
        message = str(error)
    assert message
    assert "\n" not in message or errors
    return None


def written(name: str, content: bytes | str) -> Path:
    file = FOLDER / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return file
