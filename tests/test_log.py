"""Notes go to standard error, once, and from the first rank only."""

import io
import logging
import os
import sys

import pytest

from mrg import log as module
from mrg.log import TolerantStream, configure, log, set_rank, tolerant_streams


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(module._first_rank, "rank", module._first_rank.rank)
    level = log.level
    yield
    log.setLevel(level)


def test_notes_and_warnings_on_standard_error(capsys):
    configure()
    configure()  # again, as by each command in a process
    log.info("a note")
    log.warning("a warning")
    logging.getLogger("mrg.datamodules").warning("from a module")
    log.debug("nothing")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "a note\nWarning: a warning\nWarning: from a module\n")


def test_other_ranks_are_silent(capsys):
    configure()
    set_rank(lambda: 1)
    log.warning("twice")
    set_rank(lambda: 0)
    log.warning("once")
    assert capsys.readouterr().err == "Warning: once\n"


def gone():
    """A stream whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full():
    """A stream to a full disk."""
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device")
@pytest.mark.parametrize(
    ("opened", "warning"),
    [
        (gone, ""),
        (
            full,
            "Warning: Standard output cannot be written (No space left on device): the command continues without it.\n",
        ),
    ],
)
def test_output_that_cannot_be_written_is_dropped(capsys, monkeypatch, opened, warning):
    configure()
    with opened() as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with tolerant_streams() as output:
            print("one", flush=True)
            print("two" * 10_000, flush=True)
        assert isinstance(output.problem, OSError)
        assert sys.stdout is stream
        stream.write("at exit")
    # Closing it has flushed it without an error.
    assert capsys.readouterr().err == warning


def test_output_that_is_closed_or_lacks_a_character(monkeypatch):
    closed = io.StringIO()
    closed.close()
    stream = TolerantStream(closed)
    print("one", file=stream)
    assert isinstance(stream.problem, ValueError)
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="")
    stream = TolerantStream(narrow)
    print("a – b \ud800", file=stream, flush=True)
    assert narrow.buffer.getvalue() == b"a \\u2013 b \\ud800\n"
    assert (stream.problem, stream.encoding) == (None, "ascii")
    monkeypatch.setattr("sys.stdout", None)
    with tolerant_streams() as output:
        print("nowhere")
    assert output is None
