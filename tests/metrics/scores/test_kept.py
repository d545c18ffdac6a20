import json

import numpy as np
import pytest
import torch

from mrg.metrics.scores.kept import KeptLabels, KeptValues, digest, source_digest, stamp

SETTINGS = {"score": "length"}


class Lengths:
    """Counts what it computes, and fails at a position."""

    def __init__(self, fails_at=None):
        self.computed, self.fails_at = [], fails_at

    def __call__(self, places):
        if self.fails_at in places:
            raise KeyboardInterrupt
        self.computed += places
        return [[i, 10 * i] for i in places]


def test_a_killed_command_loses_no_finished_block(tmp_path):
    keys = list("abcdef")
    with pytest.raises(KeyboardInterrupt):
        KeptValues(tmp_path / "v.jsonl").fill("x", SETTINGS, keys, Lengths(fails_at=4), block=2)
    with (tmp_path / "v.jsonl").open("ab") as file:  # what a crash leaves of the next line
        file.write(b'{"settings": "')
    rest = Lengths()
    values = KeptValues(tmp_path / "v.jsonl").fill("x", SETTINGS, keys, rest, block=2)
    assert rest.computed == [4, 5]
    assert values.tolist() == [[i, 10 * i] for i in range(6)]
    assert len(KeptValues(tmp_path / "v.jsonl").known[digest(SETTINGS)]) == 6


def test_values_of_other_settings_or_without_settings_are_computed_again(tmp_path):
    kept = KeptValues(tmp_path / "v.jsonl")
    for settings, expected in ((SETTINGS, 2), (SETTINGS, 0), ({"score": "other"}, 2), ({}, 2), ({}, 2)):
        lengths = Lengths()
        kept.fill("x", settings, ["a", "b", "a"], lengths)
        assert len(lengths.computed) == expected


def test_no_value_is_not_kept(tmp_path):
    kept = KeptValues(tmp_path / "v.jsonl")
    values = kept.fill("x", SETTINGS, ["a", "b"], lambda places: [[np.nan, 0.0], [1.0, 0.0]])
    assert np.isnan(values[0, 0])
    again = Lengths()
    KeptValues(tmp_path / "v.jsonl").fill("x", SETTINGS, ["a", "b"], again)
    assert again.computed == [0]


def test_a_damaged_line_is_named_and_its_values_computed_again(tmp_path, caplog):
    path = tmp_path / "v.jsonl"
    KeptValues(path).fill("x", SETTINGS, ["a"], lambda places: [[3.0]])
    path.write_text(path.read_text() + '{"settings": "0", "keys": ["a"]}\n[]\n')
    assert KeptValues(path).known == {digest(SETTINGS): {"a": [3.0]}}
    assert caplog.text.count("has a line that holds no values") == 2


def test_labels_are_kept(tmp_path):
    calls = []

    def labeler(texts):
        calls.append(list(texts))
        return torch.tensor([[len(text) % 4] * 14 for text in texts])

    for settings in ({"labeler": "lengths"}, {}):
        for _ in range(2):
            kept = KeptLabels(labeler, KeptValues(tmp_path / "v.jsonl"), settings, block=2)
            assert kept(["a", "bb", "a", "ccc"])[:, 0].tolist() == [1, 2, 1, 3]
    assert calls == [["a", "bb"], ["ccc"], ["a", "bb"], ["ccc"], ["a", "bb"], ["ccc"]]


def test_changed_files_have_another_stamp_and_changed_code_another_digest(tmp_path):
    file = tmp_path / "weights.py"
    file.write_text("a")
    first, code = stamp(tmp_path), source_digest(tmp_path)
    assert json.loads(json.dumps(first)) == first
    file.write_text("bb")
    assert stamp(tmp_path) != first
    assert stamp(file) != stamp(tmp_path / "none") == []
    assert source_digest(file) == source_digest(tmp_path) != code
