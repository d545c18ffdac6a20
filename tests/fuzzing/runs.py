"""Parsers of what a run has written."""

import io
import json
from typing import Any

import torch
from hypothesis import strategies as st

from mrg.modules.policy import vision_cache
from mrg.pages.run import run_page
from mrg.pages.tested_run import TestedRun
from mrg.pages.training_log import TrainingLog, read_scores
from mrg.run.checkpoint_file import check_ours, check_whole, fingerprint
from mrg.run.part_files import PartFiles
from tests.fuzzing.inputs import FOLDER, Target, damaged, objects, ours, written

IDENTITY = {"policy": "tiny"}

EMBEDDED = [torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)]

METRICS = b"step,epoch,val/mccs\n1,0,0.5\n2,0,nan\n3,1,\n"

STATE = {"state": "running", "seconds": 3.5, "studies": {"train": 8}, "policy": "a", "started": "2026-01-01"}

SAMPLE = {"round": 1, "id": "a", "completion": "x", "reward": 0.5, "truncated": False, "target": "y"}

ROW = {"id": "a", "prediction": "Clear.", "target": "Clear.", "format": True, "labels": [0] * 14}

RESULTS = {
    "protocol": {"baselines": {"constant normal": "Clear."}, "checkpoint": "a.ckpt", "fingerprint": "0"},
    "best_constant": {"num_reports": 1, "total": 1, "labeler": "rules", "margin": 0.5, "rows": {}, "reports": {}},
    "systems": {"model": {"scores": {}}},
}


def check_vision_cache(content: bytes) -> None:
    parts = vision_cache._load(written("embedded.pt", content))
    assert parts is None or [part.tolist() for part in parts] == [part.tolist() for part in EMBEDDED]


def check_scores(content: bytes) -> None:
    scores = ours(lambda: read_scores([written("metrics.csv", content)])) or {}
    assert all(step == int(step) for series in scores.values() for step, _ in series)


def check_run(files: tuple[Any, Any]) -> None:
    folder = FOLDER / "run"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("name: run\n")
    (folder / "run.json").write_text(json.dumps(files[0]))
    (folder / "samples.jsonl").write_text(json.dumps(files[1]))
    ours(lambda: run_page(TrainingLog.read(folder)))


def check_tested(files: tuple[Any, Any]) -> None:
    folder = FOLDER / "tested"
    folder.mkdir(exist_ok=True)
    (folder / "predictions.jsonl").write_text(json.dumps(files[0]))
    (folder / "results.json").write_text(json.dumps(files[1]))
    run = ours(lambda: TestedRun.read(folder))
    if run is not None:
        assert (run.reports, run.target) == ([files[0]["prediction"]], [files[0]["target"]])
        assert run.format is None or 0 <= run.format <= 1
        ours(run.predictions)


def check_parts(content: bytes) -> None:
    folder = FOLDER / "parts"
    folder.mkdir(exist_ok=True)
    parts = PartFiles(folder, "predictions", IDENTITY)
    parts.file.write_bytes(content)
    for row in ours(parts.resume) or []:
        assert isinstance(row["id"], str)
    parts.write([{"id": "new", "prediction": "Clear."}])
    found = ours(parts.resume)
    assert found is None or found[-1] == {"id": "new", "prediction": "Clear."}


def check_checkpoint(content: bytes) -> None:
    file = written("a.ckpt", content)
    assert isinstance(fingerprint(file), str)
    ours(lambda: check_whole(file))
    ours(lambda: check_ours(file))


def _embedded() -> bytes:
    vision_cache._save(FOLDER / "embedded.pt", EMBEDDED)
    return (FOLDER / "embedded.pt").read_bytes()


def _parts() -> bytes:
    parts = PartFiles(FOLDER, "example", IDENTITY)
    for batch in ("ab", "cd"):
        parts.write([{"id": name, "prediction": f"Report {name}."} for name in batch])
    return parts.file.read_bytes()


def _checkpoint() -> bytes:
    out = io.BytesIO()
    torch.save({"identity": "a", "state_dict": {"weight": torch.arange(4.0)}}, out)
    return out.getvalue()


def run_targets() -> list[Target]:
    """Their properties."""
    return [
        Target("cached embeddings", damaged(_embedded()), check_vision_cache, 300),
        Target("metrics.csv", damaged(METRICS), check_scores),
        Target("run.json and samples.jsonl", st.tuples(objects(**STATE), objects(**SAMPLE)), check_run),
        Target("predictions.jsonl and results.json", st.tuples(objects(**ROW), objects(**RESULTS)), check_tested, 300),
        Target("part files", damaged(_parts()), check_parts),
        Target("checkpoints", damaged(_checkpoint()), check_checkpoint),
    ]
