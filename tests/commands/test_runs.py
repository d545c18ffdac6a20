"""`mrg runs`: one line for each run, whatever is wrong with it."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from mrg.cli import main
from mrg.commands.runs import runs_table
from mrg.run.lock import LOCK
from tests.command_line import failure
from tests.run.test_folder import HOLD


def write(folder, age=0, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(path, (time.time() - age, time.time() - age))
    return folder


def rows(runs):
    """Name -> the other cells."""
    head, *lines = runs_table(runs).splitlines()
    assert head.split() == ["run", "state", "step", "best", "test", "updated"]
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {name: rest for name, *rest in cells}


def state(kind, **more):
    return json.dumps({"state": kind, "step": 120, "num_steps": 400, **more})


def test_state_step_scores_and_age(tmp_path, capsys):
    metrics = "epoch,step,train/loss,val/mccs\n0,9,0.5,\n0,10,,0.25\n0,20,,nan\n0,30,,0.3125\n0,40,,0.3\n"
    results = json.dumps({"systems": {"model": {"scores": {"MCCS": {"value": 0.2964}}}}})
    write(
        tmp_path / "old", 3 * 86_400 + 5, run__json=state("finished"), config__yaml="a: 1\nmonitor: val/mccs\nb: 2\n",
        metrics__csv=metrics, results__json=results,
    )  # fmt: skip
    losses = "step,val/loss\n1,0.5\n2,0.25\n3,0.75\n"
    write(
        tmp_path / "demo-1" / "sft", 7205, run__json=state("stopped", num_steps=None), config__yaml="monitor: val/loss",
        metrics__csv=losses,
    )  # fmt: skip
    write(
        tmp_path / "radcliq", 4 * 86_400, run__json=state("finished", lower_is_better=True),
        config__yaml="monitor: val/radcliq", metrics__csv=losses.replace("val/loss", "val/radcliq"),
    )  # fmt: skip
    assert rows(tmp_path).pop("radcliq") == ["finished", "120/400", "val/radcliq 0.250", "–", "4 d ago"]
    shutil.rmtree(tmp_path / "radcliq")
    assert rows(tmp_path) == {
        "demo-1/sft": ["stopped", "120", "val/loss 0.250", "–", "2 h ago"],
        "old": ["finished", "120/400", "val/mccs 31.2 %", "MCCS 29.6 %", "3 d ago"],
    }
    assert list(rows(tmp_path)) == ["demo-1/sft", "old"]  # the latest first
    for options in ([str(tmp_path)], ["--runs", str(tmp_path)]):
        main(["runs", *options])
        assert capsys.readouterr().out == runs_table(tmp_path) + "\n"
    assert next(iter(rows(tmp_path / "old"))) == str(tmp_path / "old")


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_run_that_was_killed_is_not_running(tmp_path):
    folder = write(tmp_path / "a", run__json=state("running"), **{LOCK: ""})
    assert rows(tmp_path)["a"][0] == "killed"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert rows(tmp_path)["a"][0] == "running"
        assert rows(tmp_path)["a"][0] == "running"  # looking has not released the lock
        (folder / "run.json").unlink()
        (folder / "config.yaml").touch()
        assert rows(tmp_path)["a"][0] == "starting"
        other.stdin.close()
    (folder / LOCK).unlink()  # of a system without locks, or copied
    (folder / "run.json").write_text(state("running"))
    assert rows(tmp_path)["a"][0] == "running"


@pytest.mark.parametrize(
    ("files", "cells"),
    [
        ({"run__json": b"\xff\xfe{"}, ["damaged: run.json", "–", "–", "–"]),
        ({"run__json": "[]"}, ["damaged: run.json", "–", "–", "–"]),
        ({"run__json": ""}, ["damaged: run.json", "–", "–", "–"]),
        ({"run__json": "[" * 100_000}, ["damaged: run.json", "–", "–", "–"]),
        ({"metrics__csv": "step,val/mccs\n1,0.5\n"}, ["damaged: no config.yaml", "–", "val/mccs 50.0 %", "–"]),
        ({"config__yaml": ": [", "metrics__csv": b"\x00\xff\n\x00"}, ["unknown", "–", "–", "–"]),
        ({"config__yaml": "", "metrics__csv": "step,val/mccs\n1\n2,x\n3,0.5"}, ["unknown", "–", "–", "–"]),
        ({"config__yaml": "", "results__json": '{"systems": [1]}'}, ["unknown", "–", "–", "–"]),
        ({"predictions__jsonl": "", "results__json": "no"}, ["not trained", "–", "–", "–"]),
    ],
)
def test_damaged_runs_are_listed(tmp_path, files, cells):
    write(tmp_path / "x", **files)
    assert rows(tmp_path)["x"][:4] == cells


def test_no_runs(tmp_path, capsys):
    assert runs_table(tmp_path) == f"There are no runs in {tmp_path}."
    code, text = failure(capsys, ["runs", str(tmp_path / "none")])
    assert (code, text.startswith(f"mrg: There is no folder {tmp_path / 'none'}: ")) == (2, True)
