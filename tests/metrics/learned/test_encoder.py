"""What is filled in where a folder of an encoder lacks it."""

from types import SimpleNamespace

import pytest
from transformers.utils import logging

from mrg.metrics.learned.encoder import _quiet, restored


def longest(kind, positions=514, pad=1, own=10**30):
    config = SimpleNamespace(model_type=kind, max_position_embeddings=positions, pad_token_id=pad)
    return restored(SimpleNamespace(config=config), SimpleNamespace(model_max_length=own)).max_tokens


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet", "longformer"])
def test_two_positions_are_not_used_by_roberta_and_its_kin(kind):
    assert longest(kind) == 512
    assert longest(kind, pad=0) == 513


def test_the_number_of_tokens_that_fit():
    assert longest("bert", 512) == longest("bert", 0) == longest("bert", None) == 512
    assert longest("bert", 128) == 128
    assert longest("bert", 512, own=100) == 100


@pytest.mark.parametrize("enabled", [True, False])
def test_settings_of_transformers_are_restored(enabled):
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
        logging.set_verbosity_info()
        with _quiet():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() is enabled
    finally:
        (logging.enable_progress_bar if bar else logging.disable_progress_bar)()
        logging.set_verbosity(verbosity)
