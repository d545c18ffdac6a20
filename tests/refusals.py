"""What a user reads where bad data is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest


def refused(read: Callable[[], object], error: type[Exception], named: Path | None = None) -> str:
    """The message of an error, after a check that it is one line and names where the trouble is."""
    with pytest.raises(error) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    if named is not None:
        assert str(named) in message
    return message
