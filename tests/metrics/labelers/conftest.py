import pytest

from mrg.metrics.labelers.chexbert import CheXbertLabeler
from tests.metrics.labelers.chexbert_lookalike import write_lookalike


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with chexbert.pth and the vocabulary."""
    folder = tmp_path_factory.mktemp("chexbert")
    write_lookalike(folder)
    return folder


@pytest.fixture
def make(folder):
    def make(checkpoint=folder / "chexbert.pth", tokenizer=folder, device="cpu", **settings):
        return CheXbertLabeler(checkpoint, tokenizer, device, **settings)

    return make
