import json
import random

import pytest

from mrg.metrics import packed
from mrg.metrics.__main__ import main
from mrg.metrics.packed import PackedTexts, distinct, pick
from tests.metrics.test_main import PREDS, TARGET
from tests.metrics.test_predictions import write

TEXTS = [f"Report {number % 7}: é \x00 \ud800.\n" for number in range(31)]


@pytest.mark.parametrize("block", [1, 3, 4, 31, 4096])
def test_packed_texts_are_a_list(monkeypatch, block):
    monkeypatch.setattr(packed, "_BLOCK", block)
    texts = PackedTexts(TEXTS)
    assert (len(texts), list(texts), texts[:]) == (31, TEXTS, TEXTS)
    assert [texts[i] for i in (30, -31, 7, 6, 29)] == [TEXTS[i] for i in (30, -31, 7, 6, 29)]
    assert texts[28:2:-5] == TEXTS[28:2:-5]
    assert list(zip(texts, reversed(texts), strict=True)) == list(zip(TEXTS, reversed(TEXTS), strict=True))
    for index in (31, -32):
        with pytest.raises(IndexError):
            texts[index]
    assert not PackedTexts()
    assert texts.plain() == TEXTS if block > 3 else texts.plain() is texts


def test_reports_take_less_than_a_third_of_their_length():
    words = [
        "effusion",
        "opacity",
        "atelectasis",
        "lungs",
        "no",
        "mild",
        "left",
        "unchanged",
        "pleural",
        "are",
        "clear",
    ]
    draw = random.Random(0)
    reports = [" ".join(draw.choices(words, k=40)) for _ in range(4096)]
    (block,) = PackedTexts(reports)._blocks
    assert len(block) < sum(map(len, reports)) / 3


@pytest.mark.parametrize("seed", range(3))
def test_distinct_texts_in_the_order_in_which_they_occur(seed):
    draw = random.Random(seed)
    sides = [[str(draw.randrange(20)) for _ in range(length)] for length in (15, 0, 40, 1)]
    new, rows = distinct(*sides)
    expected = list(dict.fromkeys(text for side in sides for text in side))
    assert [text for side, own in zip(sides, new, strict=True) for text in pick(side, own)] == expected
    assert [[expected[i] for i in row] for row in rows] == sides


def test_no_text_is_distinct_in_nothing():
    new, rows = distinct([])
    assert [len(new[0]), len(rows[0]), list(pick([], new[0]))] == [0, 0, []]


def test_in_parts_and_as_a_whole_the_numbers_are_the_same(tmp_path, monkeypatch, capsys):
    """Texts packed in blocks of 3, labelled 7 at a time and summed 5 at a time, or all at once."""
    draw = random.Random(0)
    studies = [
        {
            "id": str(number),
            "prediction": draw.choice([*PREDS, "", "nan", f"Edema {number}."]),
            "target": draw.choice([*TARGET, "nan", f"Left effusion {number}."]),
        }
        for number in range(60)
    ]
    options = [str(write(tmp_path / "p.jsonl", studies)), "--trials=50", "--min_cases=1"]
    main(options)
    whole, file = capsys.readouterr(), tmp_path / "p.jsonl.scores.json"
    expected = json.loads(file.read_text())
    assert 0 < len(expected["no_reference"]) < 30
    for name, size in {"packed._BLOCK": 3, "labels._AT_ONCE": 7, "resampling._ROWS": 5, "ce._ROWS": 5}.items():
        monkeypatch.setattr(f"mrg.metrics.{name}", size)
    main(options)
    assert json.loads(file.read_text()) == close(expected)
    assert capsys.readouterr().out == whole.out

    main([str(write(tmp_path / "p.jsonl", studies[::-1])), *options[1:]])
    turned = json.loads(file.read_text())["systems"]["p"]
    for name, score in expected["systems"]["p"]["scores"].items():
        assert turned["scores"][name]["value"] == pytest.approx(score["value"], abs=1e-12)
    assert turned["distinct"] == expected["systems"]["p"]["distinct"]


def close(value):
    """Equal up to the order of sums, at any depth."""
    if isinstance(value, dict):
        return {key: close(part) for key, part in value.items()}
    if isinstance(value, list):
        return [close(part) for part in value]
    return pytest.approx(value, abs=1e-12) if isinstance(value, float) else value
