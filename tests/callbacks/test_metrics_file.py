import csv
import os

import pytest

from mrg.callbacks.metrics_file import MetricsFile
from mrg.files import WriteError, count_lines, cut_lines


def log(folder, *rows, every=1, first=0):
    logger = MetricsFile(folder, every)
    for step, row in enumerate(rows, first):
        logger.log_metrics(row, step)
    logger.save()
    return logger


def rows_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_new_columns_keep_the_rows_before(tmp_path):
    log(tmp_path, {"b": 1.0}, {"b": 2.0, "a": 3.0}, {"b": 4.0})
    assert rows_of(tmp_path) == [
        {"a": "", "b": "1.0", "step": "0"},
        {"a": "3.0", "b": "2.0", "step": "1"},
        {"a": "", "b": "4.0", "step": "2"},
    ]


@pytest.mark.parametrize("every", [1, 2, 10])
def test_a_run_in_parts_writes_the_file_of_one_in_one_go(tmp_path, every):
    rows = [{"b": 1.0}, {"b": 2.0, "c": 0.1}, {"a": 3.0}, {"b": 4.0}, {"b": 5.0}]
    log(tmp_path / "whole", *rows, every=every)
    log(tmp_path / "parts", *rows[:2], every=every)
    lines = count_lines(tmp_path / "parts" / "metrics.csv")
    log(tmp_path / "parts", *rows[2:4], every=every, first=2)  # lost in a crash, a torn line last
    with (tmp_path / "parts" / "metrics.csv").open("a") as file:
        file.write("7.0,")
    assert cut_lines(tmp_path / "parts" / "metrics.csv", lines) == lines
    log(tmp_path / "parts", *rows[2:], every=every, first=2)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_a_crash_while_columns_are_added_loses_no_rows(tmp_path, monkeypatch):
    """Lightning's own logger empties the file before it writes all rows again."""
    log(tmp_path, {"a": 1.0})
    before = (tmp_path / "metrics.csv").read_bytes()

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        log(tmp_path, {"b": 1.0})
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_full_disk_is_one_error_and_silent_once_the_run_has_failed(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    with pytest.raises(WriteError, match=r"metrics.csv cannot be written \(No space left on device\)"):
        logger.save()
    with pytest.raises(WriteError):
        logger.finalize("success")
    logger.finalize("failed")


@pytest.mark.parametrize(
    "content", [b"step,a\n0,\xff\n", b"step,a\n0,1,2\n", b"a\n1\n", b'step,a\n0,"' + b"x" * 200_000]
)
def test_a_damaged_file_is_set_aside(tmp_path, caplog, content):
    """A run must not end for its log, nor lose it."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    log(tmp_path, {"b": 1.0})
    assert rows_of(tmp_path) == [{"b": "1.0", "step": "0"}]
    assert (tmp_path / "metrics-1.csv").read_bytes() == content
    assert f"{path} is damaged (" in caplog.text
    assert "it is now metrics-1.csv, and a new one is started." in caplog.text
