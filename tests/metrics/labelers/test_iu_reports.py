"""The rules labeler on the real IU X-Ray reports, against terms that were assigned by hand."""

import json
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from mrg.metrics.conditions import CONDITIONS, POSITIVE, UNCERTAIN
from mrg.metrics.labelers.rules import RulesLabeler

P, U = POSITIVE, UNCERTAIN
IU_XRAY = Path(__file__).resolve().parents[4] / "shared" / "data" / "iu_xray"


def mesh_terms():
    """Study number as in "CXR12" -> its major MeSH terms, assigned by hand."""
    terms = {}
    with tarfile.open(IU_XRAY / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                report = ElementTree.parse(archive.extractfile(member)).getroot()
                terms[report.find("uId").get("id")] = {major.text.split("/")[0] for major in report.iter("major")}
    return terms


@pytest.mark.skipif(not IU_XRAY.is_dir(), reason="needs the IU X-Ray data, which is not part of the project")
def test_real_reports_against_terms_assigned_by_hand():
    labeler = RulesLabeler()
    studies = json.loads((IU_XRAY / "annotation.json").read_text())
    rows = {split: labeler([study["report"] for study in studies[split]]) for split in studies}
    for split, labels in rows.items():
        assert labels.shape == (len(studies[split]), 14)
        assert ((labels >= 0) & (labels <= 3)).all()
        abnormal = ((labels[:, :12] == P) | (labels[:, :12] == U)).any(1)
        assert torch.equal(labels[:, 13], (~abnormal).long())
    # Measured: 76.1 %.
    assert 0.75 < float(rows["test"][:, 13].double().mean()) < 0.77

    terms = mesh_terms()
    of_study = [terms[study["id"].split("_")[0]] for study in studies["train"]]
    train = rows["train"]
    tp = fp = fn = 0
    for name in ("Cardiomegaly", "Pleural Effusion"):
        stated = train[:, CONDITIONS.index(name)]
        present = (stated == P) | (stated == U)
        truth = torch.tensor([name in found for found in of_study])
        tp, fp, fn = (
            tp + int((present & truth).sum()),
            fp + int((present & ~truth).sum()),
            fn + int((~present & truth).sum()),
        )
    # Measured: 0.880 (Cardiomegaly 0.922, Pleural Effusion 0.785).
    assert 2 * tp / (2 * tp + fp + fn) > 0.87
    # Measured: 675 of 682 studies indexed as normal.
    normal = torch.tensor(["normal" in found for found in of_study])
    assert float(train[normal, 13].double().mean()) > 0.98
