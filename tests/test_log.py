"""Notes go to standard error, once, and from the first rank only."""

import logging

import pytest

from mrg import log as module
from mrg.log import configure, log, set_rank


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
