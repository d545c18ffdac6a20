"""The IU X-Ray reports and CheXbert's labels of the training ones, if the data folder next to the project has them."""

import json
from pathlib import Path

import pytest

IU_XRAY = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "iu_xray"
LABELS = IU_XRAY / "chexbert_labels_train.csv"
needs_iu_xray = pytest.mark.skipif(not LABELS.is_file(), reason="needs the IU X-Ray data, not part of the project")


def read_reports(folder):
    """Id -> report of the training split."""
    return {item["id"]: item["report"] for item in json.loads((folder / "annotation.json").read_text())["train"]}
