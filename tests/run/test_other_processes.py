"""Processes that die while another one watches."""

import os
import signal
import subprocess
import sys

import pytest

from mrg.run.other_processes import OtherProcesses

RESUME = "Resume with: python -m mrg fit"


def started(*code):
    """Processes that run some code each."""
    return [subprocess.Popen([sys.executable, "-S", "-c", line]) for line in code]


SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def end():
    processes = []
    yield processes.extend
    for process in processes:
        process.kill()
        process.wait()


def watch(children, rank=0, **options):
    codes = []
    return OtherProcesses(children, rank, lambda: RESUME, period=0.01, end=codes.append, **options), codes


def test_a_killed_rank_is_named_with_its_signal_and_how_to_resume(end, capfd):
    children = started(SLEEP, SLEEP)
    end(children)
    watcher, codes = watch(children)
    assert not watcher.look()
    watcher.start()
    os.kill(children[1].pid, signal.SIGKILL)
    watcher.join(30)
    assert not watcher.is_alive()
    line = f"Rank 2 (process {children[1].pid}) was killed by SIGKILL (the system does so if memory runs out). {RESUME}"
    assert capfd.readouterr().err == f"\n{line}\n"
    assert codes == []  # Lightning ends the others


def test_a_failed_rank_is_named_once(end, capfd):
    children = started("raise SystemExit(3)", SLEEP)
    end(children)
    children[0].wait()
    watcher, _ = watch(children)
    assert watcher.look()
    assert watcher.look()
    line = f"Rank 1 (process {children[0].pid}) has failed with exit code 3; its error is above. {RESUME}"
    assert capfd.readouterr().err == f"\n{line}\n"


def test_the_cause_is_the_rank_that_was_killed(end, capfd):
    """Others fail because it is gone."""
    children = started("raise SystemExit(1)", SLEEP)
    end(children)
    children[0].wait()
    children[1].terminate()
    children[1].wait()
    watcher, _ = watch(children, first=4)
    watcher.settle()
    assert f"Rank 6 (process {children[1].pid}) was killed by SIGTERM. {RESUME}" in capfd.readouterr().err


def test_ranks_that_end_well_or_fail_with_this_one_are_not_reported(end, capfd):
    children = started("", "raise SystemExit(1)")
    end(children)
    for child in children:
        child.wait()
    watcher, _ = watch(children)
    watcher.failed = True  # this process prints an error of its own
    assert not watcher.look()
    assert not watch(children[:1])[0].look()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("rank", "speaks"), [(1, True), (2, False)])
def test_ranks_whose_first_is_gone_end_and_one_of_them_says_so(monkeypatch, capfd, rank, speaks):
    watcher, codes = watch([], rank, parent=os.getppid(), first=4, patience=0.01)
    assert not watcher.look()
    monkeypatch.setattr("os.getppid", lambda: 1)
    watcher.run()
    assert codes == [1]
    line = f"Rank 4 (process {watcher.parent}) has ended; the other ranks end too. {RESUME}"
    assert capfd.readouterr().err == (f"\n{line}\n" if speaks else "")


def test_a_process_that_is_done_is_not_ended(monkeypatch):
    watcher, codes = watch([], 1, parent=os.getppid(), patience=60)
    monkeypatch.setattr("os.getppid", lambda: 1)
    watcher.start()
    watcher.done.set()
    watcher.join(30)
    assert not watcher.is_alive()
    assert codes == []
