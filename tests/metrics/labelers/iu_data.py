"""The IU X-Ray reports and CheXbert's labels of the training ones, where they lie beside the project."""

import csv
import json
from pathlib import Path

import pytest
import torch

from mrg.metrics.conditions import CONDITIONS

IU_XRAY = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "iu_xray"
LABELS = IU_XRAY / "chexbert_labels_train.csv"
needs_iu_xray = pytest.mark.skipif(not LABELS.is_file(), reason="needs the IU X-Ray data, not part of the project")


def read_reports(folder):
    """Id -> report of the training split."""
    return {item["id"]: item["report"] for item in json.loads((folder / "annotation.json").read_text())["train"]}


def read_labels():
    """Reports and CheXbert's labels (N, 14) of the training split."""
    reports = read_reports(IU_XRAY)
    with LABELS.open() as file:
        rows = {row["id"]: [int(row[name]) for name in CONDITIONS] for row in csv.DictReader(file)}
    return [reports[name] for name in rows], torch.tensor(list(rows.values()))
