"""The script for a GPU: a part that fails or hangs costs the others nothing. `.ci/run` rehearses the whole script."""

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu


def test_parts_that_pass_fail_hang_and_come_too_late(tmp_path):
    def part(name, code, seconds=20):
        return gpu.Part(name, seconds, ["-c", code], f"{name}.json")

    file = tmp_path / "good.json"
    good = part("good", f"import json, pathlib; pathlib.Path({str(file)!r}).write_text('{{\"x\": 1}}'); print('done')")
    result = gpu.run(good, tmp_path, 100)
    assert (result["state"], result["summary"], result["result"]) == ("passed", ["done"], {"x": 1})
    result = gpu.run(part("bad", "raise SystemExit('no such thing')"), tmp_path, 100)
    assert (result["state"], result["summary"]) == ("failed with 1", ["no such thing"])
    result = gpu.run(part("slow", "import time; print('begun', flush=True); time.sleep(60)"), tmp_path, 6)
    assert (result["state"], result["summary"][0]) == ("out of time", "begun")
    assert result["summary"][-1] == "KeyboardInterrupt"  # below where it was
    assert result["seconds"] < 30
    assert gpu.run(good, tmp_path, 1)["state"] == "no time left"


def test_a_part_that_ignores_the_interrupt_is_killed(tmp_path):
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('begun', flush=True); time.sleep(60)"
    )
    result = gpu.run(gpu.Part("stubborn", 6, ["-c", code]), tmp_path, 100)
    assert (result["state"], result["summary"]) == ("out of time", ["begun"])
    assert result["seconds"] < 30


def test_what_a_part_started_ends_with_it(tmp_path):
    """A grandchild would hold the GPU."""
    code = f"""
import subprocess, sys, pathlib, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
time.sleep(60)
"""
    assert gpu.run(gpu.Part("nested", 6, ["-c", code]), tmp_path, 100)["state"] == "out of time"
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(50):
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":  # which init has yet to reap
            return
        time.sleep(0.1)
    raise AssertionError(status.read_text())


def test_results_that_are_half_written_are_reported(tmp_path):
    (tmp_path / "half.json").write_text('{"seconds": [1')
    result = gpu.run(gpu.Part("half", 20, ["-c", "raise SystemExit(1)"], "half.json"), tmp_path, 100)
    assert (result["state"], result["result"][:9]) == ("failed with 1", "Expecting")


def test_measured_memory_is_compared_with_the_predicted():
    text = """
+ rollout                                5.00
peak: resident + largest phase          20.84
fits in 90% of 80 GiB                     yes
peak: resident + largest phase          11.76
"""
    sizes = {"result": gpu.predicted(text)}
    assert sizes["result"] == {"step_7b": 20.84, "step_7b_4bit": 11.76}
    row = {"settings": {"geometry": "7b"}, "results": {"mrg": {"peak_mb": 21.5 * 1024}}}
    measured = {"result": row}
    assert gpu.compared({"size_7b": sizes, "step_7b": measured, "step_7b_4bit": {"result": "Expecting value"}}) == [
        "step_7b: a peak of 21.5 GiB, predicted 20.8"
    ]
    rehearsed = {"result": {**row, "settings": {"geometry": "tiny"}}}
    assert gpu.compared({"size_7b": sizes, "step_7b": rehearsed}) == []
    assert gpu.compared({"size_7b": sizes, "step_7b": gpu.waiting(gpu.Part("step_7b", 1, []))}) == []
    assert gpu.compared({}) == []


def test_the_results_are_kept_after_every_part(tmp_path, monkeypatch):
    def some(folder, small):
        assert small
        return [gpu.Part("one", 20, ["-c", "print(1)"]), gpu.Part("two", 20, ["-c", "raise SystemExit(3)"])]

    monkeypatch.setattr(gpu, "parts", some)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "--rehearse"])
    with pytest.raises(SystemExit) as exit_:
        gpu.main()
    assert exit_.value.code == 1
    states = {name: row["state"] for name, row in json.loads((tmp_path / "gpu.json").read_text())["parts"].items()}
    assert states == {"one": "passed", "two": "failed with 3"}
    assert "two              failed with 3" in (tmp_path / "gpu.txt").read_text()
    assert (tmp_path / "logs.txt").read_text() == "==== one\n1\n\n==== two\n\n"
    assert len(list(tmp_path.iterdir())) == 3
    assert json.loads((tmp_path / "gpu.json").read_text())["machine"]["device"]


def test_a_run_that_is_ended_has_written_what_ran(tmp_path, monkeypatch):
    chosen = [gpu.Part("one", 20, ["-c", "print(1)"]), gpu.Part("two", 20, ["-c", "print('begun', flush=True)"])]
    run = gpu.run
    monkeypatch.setattr(gpu, "parts", lambda *_: chosen)
    monkeypatch.setattr(gpu, "run", lambda part, *rest: run(part, *rest) if part.name == "one" else sys.exit(143))
    monkeypatch.setattr(gpu, "machine", dict)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "--rehearse"])
    with pytest.raises(SystemExit) as exit_:
        gpu.main()
    assert exit_.value.code == 143
    states = {name: row["state"] for name, row in json.loads((tmp_path / "gpu.json").read_text())["parts"].items()}
    assert states == {"one": "passed", "two": "running"}
    assert "==== one\n1\n" in (tmp_path / "logs.txt").read_text()


def test_models_lie_in_memory_where_they_fit_and_code_may_be_loaded(tmp_path, monkeypatch):
    """Containers often mount /dev/shm without the right to execute, so that compiled kernels cannot be loaded."""
    monkeypatch.setattr(gpu, "MEMORY", 1)
    assert gpu.in_memory(tmp_path) == tmp_path
    assert gpu.in_memory(tmp_path / "none") is None
    found = gpu.os.statvfs(tmp_path)
    names = ("f_bavail", "f_bfree", "f_blocks", "f_frsize")
    locked = SimpleNamespace(f_flag=found.f_flag | gpu.os.ST_NOEXEC, **{name: getattr(found, name) for name in names})
    monkeypatch.setattr(gpu.os, "statvfs", lambda folder: locked)
    assert gpu.in_memory(tmp_path) is None
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "MEMORY", 2**60)
    assert gpu.in_memory(tmp_path) is None


def test_some_parts_alone(tmp_path, monkeypatch, capsys):
    """`.ci/run` rehearses each part once, in two runs."""
    chosen = [part.name for part in gpu.parts(tmp_path, True)]
    script = (Path(gpu.__file__).parents[1] / ".ci" / "run").read_text().split("rehearsal() {")[1].split("\n}")[0]
    lists = re.findall(r"--only ([a-z0-9_ ]+) >", script)
    assert sorted(name for names in lists for name in names.split()) == sorted(chosen)

    monkeypatch.setattr(gpu, "run", lambda part, *_: {**gpu.waiting(part), "state": "passed"})
    monkeypatch.setattr(gpu, "machine", dict)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "--rehearse", "--only", "size_7b", "attention"])
    with pytest.raises(SystemExit) as exit_:
        gpu.main()
    assert exit_.value.code == 0
    assert list(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == ["attention", "size_7b"]

    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "--rehearse", "--only", "size_7b", "step_7b_4bit"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "demo_quick, but got step_7b_4bit." in capsys.readouterr().err


@pytest.mark.parametrize("small", [False, True])
def test_the_limits_leave_time_for_all(small, tmp_path):
    chosen = gpu.parts(tmp_path, small)
    assert len({part.name for part in chosen}) == len(chosen)
    assert sum(part.seconds for part in chosen[:5]) <= 540  # what is most wanted comes first
    assert all(("cuda" in " ".join(part.command)) != small for part in chosen if part.name.startswith("step"))
