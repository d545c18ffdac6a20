"""The torture benchmark in short: a few kills."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "torture.py"


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks/ is not beside the tests")
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_killed_runs_end_as_the_one_left_alone(tmp_path):
    command = [sys.executable, str(SCRIPT), "--trials=3", "--sft_steps=20", f"--output={tmp_path}", "--seed=1"]
    done = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "torture.json").read_text())
    assert report["verdict"]["equal"] == report["verdict"]["trials"] == 3
    assert report["verdict"]["kills"] >= 3
    full = report["disk_full"]
    if "left_out" not in full:
        assert full["exit"] == 1
        assert full["damaged"] == []
        assert full["equal"]
        assert "No space left on device" in full["said"][-1]
