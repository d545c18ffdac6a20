"""What is predicted to be sent beside what two processes send."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.communication import Volume, round_seconds, volume
from mrg.commands.size.activations import Training
from mrg.commands.size.geometry import geometry, read_geometry
from mrg.commands.size.memory import Plan

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "trained", "checkpointing"),
    [("ddp", "adapter", "off"), ("fsdp", "adapter", "off"), ("fsdp", "all", "checkpointing")],
)
def test_two_processes_send_what_is_predicted(policy, tmp_path, strategy, trained, checkpointing):
    """To the byte; two micro-batches of a group each, two of the reference."""
    policy.save(tmp_path / "policy")
    arguments = [str(tmp_path / "policy"), str(tmp_path / "counts.json"), strategy, trained, checkpointing]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.volume_on_ranks", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-3000:]
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert (counts["policy"], counts["reference"]) == (2, 2)
    plan = Plan(Training(4, False, 4 if trained == "adapter" else 0), strategy, world_size=2)
    expected = volume(geometry(policy.base.config), plan, 2, 2)
    sent = {name: counts[name][0] for name in ("gathered", "scattered", "reduced")}
    assert sent == {name: getattr(expected, name) for name in sent}
    assert counts["gathered"][1] + counts["scattered"][1] == expected.num_gathers
    assert counts["reduced"][1] == expected.num_reduces


def test_volume_of_a_published_model():
    """DDP sends an adapter, whatever the micro-batches; FSDP2 the whole decoder for each of them, and the more so."""
    shape = read_geometry("7b")
    ddp = volume(shape, Plan(Training(), "ddp", world_size=8), 4, 4)
    assert ddp == Volume(0, 0, 4 * 40_370_176, 0, 2)  # of 33,554,432 numbers at most
    fsdp = volume(shape, Plan(Training(), "fsdp", world_size=8), 4, 4)
    assert fsdp == Volume((13 * 28 + 1) * 2 * shape.largest_layer, 0, ddp.reduced, 13 * 28 + 1, ddp.num_reduces)
    served = volume(shape, Plan(Training(), "fsdp", world_size=8, servers=True), 4, 4)
    assert fsdp.gathered - served.gathered == 2 * shape.decoder


def test_time_by_hand():
    sent = Volume(gathered=800, scattered=0, reduced=100, num_gathers=2, num_reduces=1)
    assert sent.sent(4) == 750
    assert sent.seconds(4, bandwidth=75, latency=0.5) == 10 + 12 * 0.5
    phases = {"vision": 1.0, "rollout": 10.0, "reward": 1.0, "reference": 2.0, "policy": 4.0}
    assert round_seconds(phases, sent, 1, 75, 0.5) == (18, 18)
    # Reduced: 150 / 75 + 6 * .5 = 5 s; gathered: 600 / 75 + 6 * .5 = 11 s, of which 6 s are hidden at best.
    assert round_seconds(phases, sent, 4, 75, 0.5) == (18 + 5 + 5, 18 + 5 + 11)
    assert round_seconds(phases, sent, 4, 75, 0.5, wait=1.2) == (20 + 5 + 5, 20 + 5 + 11)
    alone = dataclasses.replace(sent, gathered=0, num_gathers=0)
    assert round_seconds(phases, alone, 4, 75, 0.5) == (23, 23)
