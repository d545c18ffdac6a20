"""The rules labeler on the real IU X-Ray reports, against terms that were assigned by hand."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mrg.metrics.conditions import POSITIVE, UNCERTAIN
from mrg.metrics.labelers.rules import RulesLabeler

ROOT = Path(__file__).resolve().parents[3]
IU_XRAY = ROOT.parent / "shared" / "data" / "iu_xray"
BENCHMARK = ROOT / "benchmarks" / "labels_iu.py"
needs_data = pytest.mark.skipif(
    not (IU_XRAY.is_dir() and BENCHMARK.is_file()), reason="needs the IU X-Ray data, which is not part of the project"
)


def load_benchmark():
    spec = importlib.util.spec_from_file_location("labels_iu", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


labels_iu = load_benchmark() if BENCHMARK.is_file() else None


@pytest.fixture(scope="module")
def splits():
    return labels_iu.read_studies(IU_XRAY)


@needs_data
def test_labels_of_real_reports_are_well_formed(splits):
    labeler = RulesLabeler(convention="plain")
    for studies in splits.values():
        labels = labeler([study.texts["findings"] for study in studies])
        assert labels.shape == (len(studies), 14)
        assert ((labels >= 0) & (labels <= 3)).all()
        abnormal = ((labels[:, :12] == POSITIVE) | (labels[:, :12] == UNCERTAIN)).any(1)
        assert torch.equal(labels[:, 13], (~abnormal).long())
    share = float(labeler([study.texts["findings"] for study in splits["test"]])[:, 13].double().mean())
    # Measured: 77.1 %.
    assert 0.76 < share < 0.78


@needs_data
@pytest.mark.parametrize(
    ("wanted", "text", "over", "uncertain", "measured"),
    [
        (("train",), "findings", "named", "positive", 0.915),
        (("train",), "findings", "named", "ignored", 0.962),
        (("train",), "findings", "all", "positive", 0.841),
        (("train",), "findings+impression", "named", "positive", 0.890),
        (("train",), "findings+impression", "named", "ignored", 0.982),
        (("val", "test"), "findings", "named", "positive", 0.909),
        (("val", "test"), "findings", "named", "ignored", 0.962),
        (("val", "test"), "findings+impression", "named", "ignored", 0.986),
    ],
)
def test_micro_f1_of_seven_conditions(splits, wanted, text, over, uncertain, measured):
    studies = [study for split in wanted for study in splits[split]]
    rows = labels_iu.summary(labels_iu.compare(RulesLabeler(convention="plain"), studies, text)[over])
    assert rows[labels_iu.MICRO][uncertain]["f1"] > measured - 0.005


@needs_data
def test_normal_studies_and_silence(splits):
    labeler = RulesLabeler(convention="plain")
    # Measured: 680 of 682, and all but 10 of 14,050 labels (de-identified names such as XXXX-a-XXXX).
    clean, normal = labels_iu.normal_share(labeler, splits["train"], "findings")
    assert normal == 682
    assert clean > 0.99 * normal
    blank, silent = labels_iu.silence(labeler, splits["train"], "findings")
    assert silent - blank <= 10


@pytest.mark.skipif(labels_iu is None, reason="needs the benchmarks folder")
def test_figures_by_hand():
    """Rows: blank, positive, negative, uncertain; each with the term and without."""
    table = {0: (2, 50), 1: (6, 1), 2: (1, 30), 3: (3, 4)}
    by_reading = {reading: labels_iu.figures([table], reading) for reading in labels_iu.READINGS}
    assert [by_reading["positive"][key] for key in ("support", "tp", "fp", "fn")] == [12, 9, 5, 3]
    assert [by_reading["negative"][key] for key in ("support", "tp", "fp", "fn")] == [12, 6, 1, 6]
    assert [by_reading["ignored"][key] for key in ("support", "tp", "fp", "fn")] == [9, 6, 1, 3]
    assert by_reading["ignored"]["f1"] == pytest.approx(12 / 16)
    assert labels_iu.figures([table, table], "positive")["tp"] == 18


@pytest.mark.skipif(labels_iu is None, reason="needs the benchmarks folder")
def test_terms_need_all_their_qualifiers():
    study = labels_iu.Study({}, ["Cardiac Shadow/borderline", "Opacity/lung/base/round"])
    assert not labels_iu.has_term(study, "Cardiomegaly")
    assert labels_iu.has_term(study, "Lung Lesion")
    assert labels_iu.has_term(study, "Lung Opacity")


@pytest.mark.skipif(labels_iu is None, reason="needs the benchmarks folder")
def test_missing_data_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="pass the folder of the IU X-Ray data"):
        labels_iu.read_studies(tmp_path)
