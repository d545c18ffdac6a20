"""The learned scores on a device that refuses the CPU's tensors, see `tests/second_device.py`, and on a GPU."""

import json
from pathlib import Path

import pytest
import torch

from mrg.metrics.learned.bertscore import BERTScore
from mrg.metrics.learned.radgraph import RadGraphF1
from mrg.metrics.learned.ratescore import RaTEScore
from tests.metrics.learned.lookalikes import write_centered, write_ner, write_radgraph
from tests.second_device import second_device

PAIRS = json.loads((Path(__file__).parent / "ratescore_package.json").read_text())


@pytest.fixture(scope="module")
def makers(tmp_path_factory, bert):
    folder = tmp_path_factory.mktemp("devices")
    ner, encoder = write_ner(folder / "ner"), write_centered(folder / "encoder")
    radgraph = write_radgraph(folder / "radgraph", bert)
    return {
        "BERTScore": lambda device: BERTScore(bert, 2, idf=PAIRS["texts"], device=device),
        "RadGraph F1": lambda device: RadGraphF1(radgraph, device=device),
        "RaTEScore": lambda device: RaTEScore(ner, encoder, sentences="punctuation", device=device),
    }


@pytest.mark.parametrize("name", ["BERTScore", "RadGraph F1", "RaTEScore"])
def test_all_tensors_of_a_score_are_on_its_device(makers, monkeypatch, name):
    expected = makers[name]("cpu")(PAIRS["others"], PAIRS["texts"])
    score = makers[name]("cpu")
    with second_device(monkeypatch) as device:
        found = score.to(device)(PAIRS["others"], PAIRS["texts"])
    assert score.device == device
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["BERTScore", "RadGraph F1", "RaTEScore"])
def test_scores_on_a_gpu_equal_those_on_the_cpu(makers, name):
    expected, found = (makers[name](device)(PAIRS["others"], PAIRS["texts"]) for device in ("cpu", None))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
