import pytest

from tests.metrics.learned.lookalikes import write_bert, write_roberta


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Folder of a tiny BERT."""
    return write_bert(tmp_path_factory.mktemp("encoders") / "bert")


@pytest.fixture(scope="session")
def roberta(tmp_path_factory):
    """Folder of a tiny RoBERTa."""
    return write_roberta(tmp_path_factory.mktemp("encoders") / "roberta")
