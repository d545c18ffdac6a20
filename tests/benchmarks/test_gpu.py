"""The script for a GPU: a part that fails or hangs costs the others nothing. `.ci/run` rehearses the whole script."""

import json
import sys

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
    assert (result["state"], result["summary"]) == ("out of time", ["begun"])
    assert result["seconds"] < 30
    assert gpu.run(good, tmp_path, 1)["state"] == "no time left"


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


@pytest.mark.parametrize("small", [False, True])
def test_the_limits_leave_time_for_all(small, tmp_path):
    chosen = gpu.parts(tmp_path, small)
    assert len({part.name for part in chosen}) == len(chosen)
    assert sum(part.seconds for part in chosen[:6]) <= 540  # what is most wanted comes first
    assert all(("cuda" in " ".join(part.command)) != small for part in chosen if part.name.startswith("step"))
