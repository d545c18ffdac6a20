"""The comparison with TRL: what was measured of mrg is kept where TRL fails."""

import contextlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LOG = BENCHMARKS / "results" / "speed-2026-11-26" / "grpo_step.json"


def test_a_failure_of_trl_costs_what_was_measured_of_mrg_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import grpo_step

    mine = json.loads(LOG.read_text())["results"]["mrg"]

    def run_side(side, folder):
        if side == "trl":
            raise SystemExit("trl failed with 1:")
        return mine

    monkeypatch.setattr(grpo_step, "run_side", run_side)
    monkeypatch.setattr(grpo_step, "random_model", lambda *_: contextlib.nullcontext("folder"))
    monkeypatch.setattr(grpo_step.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["grpo_step.py", f"--output={tmp_path / 'step.json'}"])
    with pytest.raises(SystemExit, match="trl failed with 1:"):
        grpo_step.main()
    found = json.loads((tmp_path / "step.json").read_text())
    assert found["results"] == {"mrg": mine}
    assert found["efficiency"]["tokens_per_s"] > 0
    assert "mrg      3.91 s per step" in capsys.readouterr().out
