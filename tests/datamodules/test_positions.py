import pytest

from mrg.datamodules.positions import to_position


@pytest.mark.parametrize(
    ("word", "position"),
    [
        ("Frontal", "frontal"),
        ("AP", "frontal"),
        ("postero-anterior", "frontal"),
        ("POSTERO_ANTERIOR", "frontal"),
        ("LATERAL", "lateral"),
        ("LL", "lateral"),
        ("left lateral", "lateral"),
        ("LAO", ""),
        ("UNKNOWN", ""),
        ("N/A", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_words_of_published_data_sets(word, position):
    assert to_position(word) == position
