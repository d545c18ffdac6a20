"""The rules beside CheXbert's labels of real reports: the training split of IU X-Ray, where it is at hand."""

import zlib

import pytest

from mrg.metrics.labelers.rules import RulesLabeler
from tests.metrics.labelers.iu_data import IU_XRAY, needs_iu_xray

benchmark = pytest.importorskip("benchmarks.labels_chexbert")


@pytest.fixture(scope="module")
def training():
    return benchmark.read(IU_XRAY)


@needs_iu_xray
@pytest.mark.parametrize(
    ("convention", "measured"),
    [
        ("chexbert", {"micro-14+": 0.902, "micro-14": 0.888, "micro-13+": 0.881, "classes": 0.969, "cosine": 0.931}),
        ("plain", {"micro-14+": 0.748, "micro-14": 0.755, "micro-13+": 0.796, "classes": 0.934, "cosine": 0.896}),
    ],
)
def test_agreement_on_the_training_split(training, convention, measured):
    _, texts, expected = training
    got = benchmark.agreement(RulesLabeler(convention=convention)(texts), expected)
    for name, value in measured.items():
        assert got[name] > value - 0.003, (name, got[name])


@needs_iu_xray
def test_both_halves_of_the_training_split_agree_alike(training):
    """The phrases were chosen on the first half alone."""
    ids, texts, expected = training
    half = [zlib.crc32(name.encode()) % 2 for name in ids]
    for which in (0, 1):
        rows = [i for i, h in enumerate(half) if h == which]
        assert benchmark.agreement(RulesLabeler()([texts[i] for i in rows]), expected[rows])["micro-14+"] > 0.89
